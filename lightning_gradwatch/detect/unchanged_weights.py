"""Weights that get a gradient and stay as they are: no optimizer holds them, or its rate is 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.measure.gradient_norm import local
from lightning_gradwatch.thresholds import SEVERAL

_IN_NO_OPTIMIZER = "None of them is in an optimizer."
_RATE_OF_ZERO = "They are in an optimizer whose learning rate is 0."
_RATE_REMEDY = (
    "Look at what the scheduler makes of the learning rate, and at the parameter group that holds them. If the module is meant "
    "to stay as it is, module.requires_grad_(False) says so, and saves its part of the backward pass."
)


@dataclass(slots=True)
class _Row:
    """Samples in a row with the same weights."""

    values: tuple[float, ...]
    steps: list[int]
    told: bool = False


class UnchangedWeights:
    """Told once for each module, from its third sample on.

    Whoever optimizes by other means than a ``torch.optim.Optimizer`` changes the weights, and is
    not meant; nor is an optimizer that waits for its turn.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    @torch.no_grad()
    def __call__(
        self, module: str, weights: Sequence[Tensor], optimizers: Iterable[Optimizer], moment: Moment
    ) -> Event | None:
        """Take in one sampled step, before the optimizer's.

        Args:
            weights: its own, those that are trained, with their gradients.
            optimizers: all that are known. With none nothing is.
        """
        cause = _why_unchanged(weights, optimizers)
        if cause is None:
            self._rows.pop(module, None)
            return None
        values = _fingerprint(weights)
        row = self._rows.get(module)
        if row is None or row.values != values:
            row = self._rows[module] = _Row(values, [])
        if moment.step not in row.steps[-1:]:  # a step may have several backward passes
            row.steps.append(moment.step)
        if row.told or len(row.steps) < SEVERAL or not _get_gradient(weights):
            return None
        row.told = True
        detail = f"{cause} So it was in {len(row.steps)} samples in a row, from step {row.steps[0]} on."
        remedy = _RATE_REMEDY if cause == _RATE_OF_ZERO else EventKind.WEIGHTS_UNCHANGED.remedy
        return moment.event(EventKind.WEIGHTS_UNCHANGED, module=module, detail=detail, remedy=remedy)


def _why_unchanged(weights: Sequence[Tensor], optimizers: Iterable[Optimizer]) -> str | None:
    """Why no optimizer would change any of them; None where one would, or none is known."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    mine = set(map(id, weights))
    held = [group for group in groups if not mine.isdisjoint(map(id, group["params"]))]
    if not groups or not weights:
        return None
    if not held:
        return _IN_NO_OPTIMIZER
    return _RATE_OF_ZERO if all("lr" in group and float(group["lr"]) == 0 for group in held) else None


def _fingerprint(weights: Iterable[Tensor]) -> tuple[float, ...]:
    """Their norms, by which a change is seen whoever made it."""
    return tuple(float(torch.linalg.vector_norm(local(weight).float())) for weight in weights)


def _get_gradient(weights: Iterable[Tensor]) -> bool:
    return any(weight.grad is not None and bool(local(weight.grad).any()) for weight in weights)
