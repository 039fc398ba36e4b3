"""Calls of PyTorch's recurrent operators without the warnings that the user's own forward
gives once, where they are due.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_warnings() -> Generator[None]:
    """Leave out those of the operators behind ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        yield
