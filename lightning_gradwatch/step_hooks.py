"""Hooks on the steps of optimizers: called once a step, and where PyTorch has let go of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch.optim import Optimizer

_LETS_GO = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 4)


_UNHEARD = (
    "The steps of this {} are not heard: neither counted nor judged, and clip_adaptively does not act on them. PyTorch 2.2 takes "
    "the hooks from optimizers at the first torch.compile, and its scheduler holds on to that. Begin before the "
    "scheduler is made, or use PyTorch 2.4 or later."
)


def once_a_step(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, which does nothing where a class's step has called that of a class which it is
    derived from: PyTorch calls all hooks in each of the two.
    """

    def heard(optimizer: Optimizer, *more: Any) -> Any:
        return None if _steps_within_a_step(optimizer) else hook(optimizer, *more)

    return heard


def _steps_within_a_step(optimizer: Optimizer) -> bool:
    # By the calls that are going on, and not by what was counted: a step may end in an error.
    frame, steps = sys._getframe(2), 0  # pyright: ignore[reportPrivateUsage]
    while frame is not None and steps < 2:
        steps += frame.f_code is _CALLS_HOOKS and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return steps == 2


def keep_step_hooks(optimizers: Iterable[Optimizer] = ()) -> None:
    """Have optimizers call the hooks on their steps. In PyTorch 2.2 the first ``torch.compile`` of
    a process takes out of the classes in ``torch.optim`` what calls hooks; it is put back, as
    making a first optimizer of the class would have. An optimizer with a scheduler keeps the step
    that the scheduler found, which a warning says.

    Args:
        optimizers: those whose steps matter.
    """
    for kind in _kinds(Optimizer) if _LETS_GO else ():
        step = vars(kind).get("step")
        if getattr(step, "hooked", False) and not _calls_hooks(step):
            cast("Any", kind).step = Optimizer.profile_hook_step(cast("Any", step))
    for one in optimizers if _LETS_GO else ():
        if not _calls_hooks(one.step):
            warnings.warn(_UNHEARD.format(type(one).__name__), stacklevel=2)


def _kinds(kind: type[Optimizer]) -> Iterator[type[Optimizer]]:
    for derived in kind.__subclasses__():
        yield derived
        yield from _kinds(derived)


def _calls_hooks(step: Any) -> bool:
    while step is not None and getattr(step, "__code__", None) is not _CALLS_HOOKS:
        step = getattr(step, "__wrapped__", None)
    return step is not None


def _nothing() -> None: ...


_CALLS_HOOKS = cast("Any", Optimizer.profile_hook_step(_nothing)).__code__
"""What PyTorch wraps around the step of each class."""
