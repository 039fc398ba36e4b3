"""A computation of our own beside the training."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from lightning_gradwatch.recurrent.adjoint.quiet import without_warnings
from lightning_gradwatch.recurrent.graph.saved_hooks import saved_as_they_are
from lightning_gradwatch.recurrent.pause import paused


@contextmanager
def undisturbed(device: str) -> Generator[None]:
    """Without what the user may have switched on for the training's own passes: autocast,
    ``detect_anomaly``, hooks on saved tensors. What is computed within has a precision of its own
    and is no backward pass of the training.
    """
    with (
        torch.autocast(device, enabled=False),
        torch.autograd.set_detect_anomaly(False),
        saved_as_they_are(),
        without_warnings(),
        paused(),
    ):
        yield
