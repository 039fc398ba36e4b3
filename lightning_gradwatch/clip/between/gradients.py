"""The gradients of some parameters at one moment, as numbers that stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_gradwatch.audit import CHANGED, ClipSample
from lightning_gradwatch.clip.between.parts import Norms, counts_here, is_sharded
from lightning_gradwatch.clip.norms import tensor_norms
from lightning_gradwatch.recurrent.measure.gradient_norm import PendingValues, local, numbers

_GROWN = 1e-4
"""Share of a parameter's norm. No rounding makes it larger by so much."""

_ALIKE = 1e-2
"""Share of a factor. By so much a factor in half precision may differ from tensor to tensor."""

Marks = dict[int, tuple[int, int]]
"""Of each parameter's gradient where it lies and how often it was written to."""


def marks(parameters: Iterable[Tensor]) -> Marks:
    """As they are now. They cost no operation, and tell a gradient that was written to, or
    replaced, even where its numbers stayed the same; what writes through ``.data`` leaves none.
    """
    return {id(weight): _mark(weight.grad) for weight in parameters if weight.grad is not None}


def differ(before: Marks, after: Marks) -> bool:
    """Whether a gradient that is in both was written to, or replaced, in between."""
    return any(before[weight] != mark for weight, mark in after.items() if weight in before)


class Gradients:
    """Their norms, on their way from the device, and their marks; of sharded ones, of this
    process's part.

    Args:
        parameters: those without a gradient are left out.
        scale: the gradient scaler's factor that is in them.

    Attributes:
        sharded: whether other processes hold parts of any.
        counts: for each, whether this process's part counts in the whole.
    """

    def __init__(self, parameters: Iterable[Tensor], scale: Tensor | float = 1.0) -> None:
        gradients = {id(weight): weight.grad for weight in parameters if weight.grad is not None and weight.numel()}
        self.marks: Marks = {weight: _mark(gradient) for weight, gradient in gradients.items()}
        self.sharded = any(map(is_sharded, gradients.values()))
        self.counts = {weight: counts_here(gradient) for weight, gradient in gradients.items()} if self.sharded else {}
        self._pending: PendingValues | None = None
        if gradients:
            with torch.no_grad():
                scaled = isinstance(scale, Tensor) or scale != 1.0  # which may leave no room for squares
                norms = tensor_norms([local(gradient) for gradient in gradients.values()], wide=scaled)
                self._pending = PendingValues(
                    norms / scale if not isinstance(scale, Tensor) else norms / scale.to(norms.device)
                )

    def ready(self) -> bool:
        """Whether :meth:`norms` need not wait for the device."""
        return self._pending is None or self._pending.ready()

    def norms(self) -> dict[int, float]:
        """L2 norm by the identity of the parameter."""
        return {} if self._pending is None else dict(zip(self.marks, self._pending.values(), strict=True))

    def part(self, places: Mapping[int, int]) -> Norms | None:
        """What this process adds to the norms of sharded ones; None where they cannot be put
        together.

        Args:
            places: of each parameter, by its identity, in the optimizer.
        """
        if None in self.counts.values():
            return None
        return {places[weight]: norm if self.counts[weight] else 0.0 for weight, norm in self.norms().items()}


def sample_of(
    step: int, before: Gradients, after: Gradients, scale: float, whole: tuple[Norms, Norms] | None = None
) -> ClipSample | None:
    """What became of the gradients; None where there were none, or one is not finite.

    A gradient that was taken away, or set to 0, is out of the comparison: that freezes a parameter,
    which is no clipping.

    Args:
        scale: as for :class:`ClipSample`.
        whole: the norms before and after of sharded gradients, by the identity of the parameter.
    """
    first, then = whole or (before.norms(), after.norms())
    both = [weight for weight in then if weight in first]
    if not all(math.isfinite(norms[weight]) for weight in both for norms in (first, then)):
        return None
    common = [weight for weight in both if then[weight] > 0 or first[weight] == 0]
    norm, got = (math.hypot(*(norms[weight] for weight in common)) for norms in (first, then))
    if not common:
        return None
    touched = differ(before.marks, after.marks)
    grown = any(then[weight] > first[weight] * (1 + _GROWN) for weight in common)
    smaller = [weight for weight in common if then[weight] < first[weight] * (1 - CHANGED)]
    factors = [then[weight] / first[weight] for weight in smaller]
    uneven = bool(factors) and max(factors) - min(factors) > _ALIKE * max(factors)
    rest = any(first[weight] > 0 for weight in common if weight not in set(smaller))
    part = math.hypot(*(first[weight] for weight in smaller)) if smaller and rest else None
    return ClipSample(step, norm, got, touched, grown, scale, part, uneven, before.sharded or after.sharded)


def same(one: Gradients, other: Gradients) -> bool:
    """Whether no norm differs by more than rounding."""
    first, then = one.norms(), other.norms()
    return all(math.isclose(first[weight], then[weight], rel_tol=_GROWN) for weight in first.keys() & then.keys())


def _mark(gradient: Tensor) -> tuple[int, int]:
    values = numbers(gradient)
    # Of a DTensor operations on one are counted, those on a list (clip_grad_norm_) are not.
    return values.data_ptr(), values._version + gradient._version  # pyright: ignore[reportPrivateUsage]
