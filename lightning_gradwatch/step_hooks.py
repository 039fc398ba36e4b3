"""Hooks on the steps of optimizers, where PyTorch has let go of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.optim import Optimizer

_LETS_GO = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 4)


def keep_step_hooks() -> None:
    """Have optimizers call the hooks on their steps. In PyTorch 2.2 the first ``torch.compile`` of
    a process takes out of the classes in ``torch.optim`` what calls hooks; it is put back, as
    making a first optimizer of the class would have.
    """
    for kind in _kinds(Optimizer) if _LETS_GO else ():
        step = vars(kind).get("step")
        if getattr(step, "hooked", False) and not _calls_hooks(step):
            cast("Any", kind).step = Optimizer.profile_hook_step(cast("Any", step))


def _kinds(kind: type[Optimizer]) -> Iterator[type[Optimizer]]:
    for own in kind.__subclasses__():
        yield own
        yield from _kinds(own)


def _calls_hooks(step: Any) -> bool:
    calls = cast("Any", Optimizer.profile_hook_step(_nothing)).__code__
    while step is not None and getattr(step, "__code__", None) is not calls:
        step = getattr(step, "__wrapped__", None)
    return step is not None


def _nothing() -> None: ...
