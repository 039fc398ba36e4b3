"""A copy of a model, of a batch, and the states of the random generators."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_gradwatch.runlog.randomness import random_states, set_random_states

T = TypeVar("T")


def copied_model(model: nn.Module) -> nn.Module:
    """A model of its own that trains: not its gradients, and of a LightningModule not what it logs.

    Raises:
        ValueError: it cannot be copied.
    """
    made = copied("model", model, "Give compare_starts a model that copy.deepcopy can copy.")
    for parameter in made.parameters():
        parameter.grad = None
    for module in made.modules():
        _unhook(module)
    if not any(module.training for module in model.modules()):
        made.train()
    if callable(getattr(made, "training_step", None)):
        _detach(model, made)
    return made


def _unhook(module: nn.Module) -> None:
    """Hooks of ours on the model came along; in a copy they do nothing."""
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        hooks: dict[int, Any] = vars(module)[name]
        for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
            del hooks[key]


def _is_ours(hook: Any) -> bool:
    owner = type(getattr(hook, "__self__", None)).__module__
    return owner.partition(".")[0] == __name__.partition(".")[0]


def _detach(model: nn.Module, made: nn.Module) -> None:
    """The Trainer of a fit may be read, and hears nothing."""
    vars(made)["_trainer"] = getattr(model, "_trainer", None)
    for name in ("log", "log_dict"):
        if hasattr(type(made), name):
            vars(made)[name] = _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def copied(argument: str, value: T, remedy: str) -> T:
    """A deep copy.

    Raises:
        ValueError: there can be none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return copy.deepcopy(value)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"`{argument}` must be something that can be copied; found {why}. {remedy}") from error


@contextmanager
def same_randomness(model: nn.Module) -> Generator[None]:
    """All random generators are afterwards what they were before, on every way out."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    states = random_states(device)
    try:
        yield
    finally:
        set_random_states(states, device)
