"""With watch() and without it, a loop trains the same to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradwatch import load_run, watch
from tests.asserts import assert_identical
from tests.integration.loops import WAYS, Loop, plain


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    """PyTorch imports parts of itself at an optimizer's first step, and draws from Python's random numbers for it."""
    list(plain().train())


def trained(make: Callable[[], Loop], **options: Any) -> tuple[dict[str, Any], watch | None]:
    """Everything that a training leaves: weights, optimizers, random streams."""
    torch.manual_seed(3)
    random.seed(3)
    loop, watched = make(), None
    if options:
        with watch(loop.model, loop.optimizers, **options, **loop.options) as watched:
            for _ in loop.train():
                pass
    else:
        for _ in loop.train():
            pass
    left = {
        "weights": loop.model.state_dict(),
        "gradients": [p.grad for p in loop.model.parameters()],
        "optimizers": [optimizer.state_dict() for optimizer in loop.optimizers],
        "random": [torch.get_rng_state(), random.getstate()],
    }
    return left, watched


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize("make", WAYS, ids=lambda make: make.__name__)
def test_a_loop_trains_as_if_nobody_watched(make: Callable[[], Loop], every: int, tmp_path: Path) -> None:
    """Weights, gradients, optimizer states and random streams are those of the bare loop; all is measured, and exact."""
    bare, _ = trained(make)
    watched, w = trained(make, every_n_steps=every, dirpath=tmp_path / "run", keep_sequences=True)
    assert_identical(bare, watched)
    assert w is not None
    assert not w.events
    profiles = load_run(w.run_dir).profiles
    assert len(profiles)
    assert profiles["exact"].all(), set(profiles["inexact_reason"])
