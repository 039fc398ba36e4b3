"""Weights that get a gradient and stay as they are, since no optimizer holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.measure.gradient_norm import local
from lightning_gradwatch.thresholds import SEVERAL

_OUTSIDE_REMEDY = (
    "It is not among the model's modules, as what lies in a plain list or dict is not: self.parameters() leaves it out, and neither .to() "
    "nor a checkpoint knows it. Hold it as an attribute of its own, or in an nn.ModuleList or nn.ModuleDict. If it is meant to stay as it "
    "is, module.requires_grad_(False) says so."
)


@dataclass(slots=True)
class _Row:
    """Samples in a row with the same weights."""

    values: tuple[float, ...]
    steps: list[int]
    told: bool = False


def held_by(optimizers: Iterable[Optimizer]) -> frozenset[int]:
    """The ids of the parameters that any of them holds; valid while these live."""
    return frozenset(
        id(weight) for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]
    )


class UnchangedWeights:
    """Told once for each module, from its third sample on.

    Whoever optimizes by other means than a ``torch.optim.Optimizer`` changes the weights, and is
    not meant; nor is an optimizer that waits for its turn, or whose learning rate is 0.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    @torch.no_grad()
    def __call__(
        self,
        module: str,
        weights: Sequence[Tensor],
        held: Set[int],
        moment: Moment,
        *,
        outside: bool = False,
    ) -> Event | None:
        """Take in one sampled step, before the optimizer's.

        Args:
            weights: its own, those that are trained, with their gradients.
            held: by all optimizers that are known, of :func:`held_by`. With none nothing is told.
            outside: the module is not one of the model's own.
        """
        if not (weights and held) or not held.isdisjoint(map(id, weights)):
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
        since = f"in {len(row.steps)} samples in a row, from step {row.steps[0]} on"
        detail = f"None of them is in an optimizer. So it was {since}."
        remedy = _OUTSIDE_REMEDY if outside else EventKind.WEIGHTS_UNCHANGED.remedy
        return moment.event(EventKind.WEIGHTS_UNCHANGED, module=module, detail=detail, remedy=remedy)


def _fingerprint(weights: Iterable[Tensor]) -> tuple[float, ...]:
    """Their norms, by which a change is seen whoever made it."""
    return tuple(float(torch.linalg.vector_norm(local(weight).float())) for weight in weights)


def _get_gradient(weights: Iterable[Tensor]) -> bool:
    return any(weight.grad is not None and bool(local(weight.grad).any()) for weight in weights)
