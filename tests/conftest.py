"""What every test shares: one thread, its own random numbers, loud errors of our own, and no hook left behind."""

from __future__ import annotations

import logging
import os

import pytest
import torch
from hypothesis import settings
from torch import nn

settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # so that two test workers don't fight over two cores


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # pytest-randomly seeds Python and NumPy


@pytest.fixture(autouse=True)
def _lightning_speaks() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)  # as Lightning itself does; a campaign silences it
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _own_errors_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gradwatch.callbacks.grad_watch import GradWatch

    monkeypatch.setattr(GradWatch, "raise_own_errors", True)


@pytest.fixture(autouse=True)
def _no_hook_outlives_a_test(monkeypatch: pytest.MonkeyPatch):
    """Every owner of hooks must have taken them off, whatever ended the fit."""
    from lightning_gradwatch.recurrent import Capture

    attached: list[Capture] = []
    attach = Capture.attach

    def noted(self: Capture) -> None:
        attached.append(self)
        attach(self)

    monkeypatch.setattr(Capture, "attach", noted)
    yield
    left = [name for capture in attached for name, m in capture.modules.items() if _hooks_of(capture, m)]
    assert not left, f"hooks were left on {left}"


def _hooks_of(capture, module: nn.Module) -> list[object]:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    hooks += torch.nn.modules.module._global_forward_hooks.values()
    return [hook for hook in hooks if getattr(hook, "__self__", None) in (capture, capture._first)]
