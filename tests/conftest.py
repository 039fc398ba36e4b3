"""What every test shares: one thread, its own random numbers, loud errors of our own, and no hook left behind."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from beartype._check.code import codemain
from hypothesis import settings
from jaxtyping import install_import_hook
from torch import nn

SHAPES_CHECKED = [f"lightning_gradwatch.recurrent.{room}" for room in ("adjoint", "measure", "control", "layout")]
# Of a list beartype looks at one item, which it draws; the stream that it draws from is not to be a training's.
codemain.getrandbits = Random(0).getrandbits
install_import_hook(SHAPES_CHECKED, "beartype.beartype")  # before anything imports them

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
    from lightning_gradwatch.outside.loop_watch import watch

    monkeypatch.setattr(GradWatch, "raise_own_errors", True)
    monkeypatch.setattr(watch, "raise_own_errors", True)


@pytest.fixture(autouse=True)
def _no_hook_outlives_a_test(monkeypatch: pytest.MonkeyPatch):
    """Every owner of hooks must have taken them off, whatever ended the fit."""
    hooked: list[nn.Module] = []
    for name in ("register_forward_hook", "register_forward_pre_hook"):
        monkeypatch.setattr(nn.Module, name, _noting(getattr(nn.Module, name), hooked))
    yield
    left = sorted({f"{_owner(hook)} on {type(m).__name__}" for m in hooked for hook in _hooks(m) if _is_ours(hook)})
    left += [f"{_owner(hook)} on everything" for hook in _global_hooks() if _is_ours(hook)]
    left += _stand_ins()
    assert not left, f"hooks were left behind: {left}"


def _noting(register: Callable[..., Any], hooked: list[nn.Module]) -> Callable[..., Any]:
    def noted(self: nn.Module, hook: Callable[..., Any], **options: Any) -> Any:
        if _is_ours(hook):
            hooked.append(self)
        return register(self, hook, **options)

    return noted


def _hooks(module: nn.Module) -> list[Callable[..., Any]]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _global_hooks() -> list[Callable[..., Any]]:
    of_all, steps = torch.nn.modules.module, sys.modules["torch.optim.optimizer"]
    forward = [*of_all._global_forward_hooks.values(), *of_all._global_forward_pre_hooks.values()]
    return [*forward, *steps._global_optimizer_pre_hooks.values(), *steps._global_optimizer_post_hooks.values()]


def _stand_ins() -> list[str]:
    """What a watch without a Trainer puts in the place of torch's own functions."""
    scaler = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler  # before PyTorch 2.3
    replaceable = (torch.autograd.backward, scaler.scale)
    return [f"in the place of {f.__name__}" for f in replaceable if "lightning_gradwatch" in f.__code__.co_filename]


def _owner(hook: Callable[..., Any]) -> str:
    owner = getattr(hook, "__self__", None)
    return hook.__module__ if owner is None else f"{type(owner).__module__}.{type(owner).__name__}"


def _is_ours(hook: Callable[..., Any]) -> bool:
    return _owner(hook).startswith("lightning_gradwatch")
