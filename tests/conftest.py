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


PUT_ON = (
    *((nn.Module, f"register_forward_{name}") for name in ("hook", "pre_hook")),
    *((torch.optim.Optimizer, f"register_step_{name}_hook") for name in ("pre", "post")),
    (torch.Tensor, "register_hook"),
)


@pytest.fixture(autouse=True)
def _no_hook_outlives_a_test(monkeypatch: pytest.MonkeyPatch):
    """Every owner of hooks must have taken them off, whatever ended the fit: of modules, optimizers
    and parameters. Those on what a graph computed go with the graph.
    """
    noted: list[tuple[str, Any]] = []
    for kind, name in PUT_ON:
        monkeypatch.setattr(kind, name, _noting(getattr(kind, name), noted))
    yield
    left = sorted({name for name, handle in noted if handle.id in (handle.hooks_dict_ref() or ())})
    left += [f"{_owner(hook)} on everything" for hook in _global_hooks() if _is_ours(hook)]
    left += _stand_ins()
    assert not left, f"hooks were left behind: {left}"


def _noting(register: Callable[..., Any], noted: list[tuple[str, Any]]) -> Callable[..., Any]:
    def noting(self: Any, hook: Callable[..., Any], *args: Any, **options: Any) -> Any:
        handle = register(self, hook, *args, **options)
        if _is_ours(hook) and not _goes_with_its_owner(self, hook):
            noted.append((f"{_owner(hook)} on {type(self).__name__}", handle))
        return handle

    return noting


def _goes_with_its_owner(owner: Any, hook: Callable[..., Any]) -> bool:
    """What a graph computed lives as long as the graph; ``clip_adaptively(optimizer)`` that is not
    entered clips as long as the optimizer lives.
    """
    return (isinstance(owner, torch.Tensor) and not owner.is_leaf) or _owner(hook).endswith(".clip_adaptively")


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
    hook = getattr(hook, "func", hook)  # of a partial
    owner = getattr(hook, "__self__", None)
    if owner is None:  # a function that a snippet of the documentation defines has no module
        return getattr(hook, "__module__", type(hook).__module__) or ""
    return f"{type(owner).__module__}.{type(owner).__name__}"


def _is_ours(hook: Callable[..., Any]) -> bool:
    return _owner(hook).startswith("lightning_gradwatch")
