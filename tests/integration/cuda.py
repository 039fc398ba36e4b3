"""What the tests on a CUDA device share: they run where there is one, in full precision, and repeat to the bit."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; bits can be compared only so


@pytest.fixture
def full_precision() -> Any:
    """cuDNN's TensorFloat-32 is no float32: a profile of it says that it is not exact."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
