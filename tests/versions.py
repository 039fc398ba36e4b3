"""What differs between the versions of PyTorch and Lightning that the tests run with."""

from __future__ import annotations

import inspect
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
LIGHTNING = tuple(int(number) for number in pl.__version__.split(".")[:2])

SCALER = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler
"""PyTorch's own; before 2.3 it is under CUDA alone."""

AS_DATA = {"weights_only": True} if "weights_only" in inspect.signature(pl.Trainer.fit).parameters else {}
"""How ``Trainer.fit`` is told to load data alone; Lightning up to 2.5 does not know it."""

INTERRUPT_EXITS = LIGHTNING >= (2, 3)
"""Whether an interrupt leaves ``fit`` as a SystemExit; before Lightning 2.3 ``fit`` returns as if all were done."""


def cpu_scaler(**options: Any) -> torch.amp.GradScaler:
    """A gradient scaler on the CPU, or the test is skipped: PyTorch has one from 2.3 on."""
    needs_torch(2, 3, "has no gradient scaler on the CPU")
    return torch.amp.GradScaler("cpu", **options)


def needs_torch(major: int, minor: int, why: str) -> None:
    """Skip the test where PyTorch is older than it must be."""
    if (major, minor) > TORCH:
        pytest.skip(f"PyTorch before {major}.{minor} {why}")


def needs_fused() -> None:
    """Skip the test where PyTorch has no optimizer that makes a step, and unscales, in one operation on the CPU."""
    needs_torch(2, 4, "has no fused optimizer on the CPU")


def needs_lightning(major: int, minor: int, why: str) -> None:
    """Skip the test where Lightning is older than it must be."""
    if (major, minor) > LIGHTNING:
        pytest.skip(f"Lightning before {major}.{minor} {why}")


def seed_everything(seed: int) -> None:
    """As Lightning's, without a word: it has ``verbose`` from 2.2 on, and leaves a variable in the environment."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
