"""What every test shares: one thread, loud errors of our own, and no hook left behind."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # so that two test workers don't fight over two cores


@pytest.fixture(autouse=True)
def _own_errors_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gradwatch.callbacks.grad_watch import GradWatch

    monkeypatch.setattr(GradWatch, "raise_own_errors", True)


@pytest.fixture(autouse=True)
def _no_hook_outlives_a_test():
    """Every owner of hooks must have taken them off, whatever ended the fit."""
    yield
    for module in [found for found in gc.get_objects() if issubclass(type(found), nn.RNNBase)]:
        ours = [
            hook
            for hook in module._forward_hooks.values()
            if "lightning_gradwatch" in str(getattr(hook, "__module__", ""))
        ]
        assert not ours, f"{module} still has {ours}"
