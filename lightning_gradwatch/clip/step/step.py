"""One optimizer step of AdaptiveClip: measure all parts in one host sync, then clip each by its policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradwatch.clip import ClipPolicy, Decision, TensorPolicy
from lightning_gradwatch.clip.norms import global_norm, read, scale_, true_norm
from lightning_gradwatch.clip.step.groups import Part

UNTOUCHED = Decision(None, 1.0)


@dataclass(frozen=True)
class Measured:
    """What was read from the device for one part.

    Args:
        norm: before clipping.
        parameter_norm: where its policy wants it.
        travel: how far an unclipped step moves the parameters, where its policy wants that and it takes a reading.
        clipped_norm, share: where its policy has clipped the tensors already.
    """

    norm: float
    parameter_norm: float | None = None
    travel: float | None = None
    clipped_norm: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one part, or of all: norm before, decision, norm after."""

    norm: float
    decision: Decision
    clipped_norm: float


def measure(
    parts: Sequence[Part], *, deferring: bool, loss: Tensor | None = None
) -> tuple[list[Measured], float | None]:
    """Norms of all parts, and the loss, which is read beside them; where a policy works on tensors, it clips them on the way.

    Args:
        parts: of one optimizer.
        deferring: another is to clip.
        loss: a scalar.
    """
    readings = [_launch(part, deferring=deferring) for part in parts]
    scalars = [scalar for reading in readings for scalar in reading.values()]
    values = iter(read(scalars if loss is None else [*scalars, loss]))
    measured = [Measured(**{name: next(values) for name in reading}) for reading in readings]
    if any(math.isinf(m.norm) for m in measured):
        both = zip(parts, measured, strict=True)
        measured = [_settle(p, m, deferring=deferring) if math.isinf(m.norm) else m for p, m in both]
    return measured, next(values, None)


def clip(part: Part, measured: Measured, *, deferring: bool, loss: float | None = None) -> Outcome:
    """Let the part's policy decide, and act on it.

    Args:
        loss: the same on all processes.
    """
    policy, norm = part.state.policy, measured.norm
    if measured.clipped_norm is not None:
        after = min(measured.clipped_norm, norm)  # the two may differ by a rounding
        return Outcome(norm, Decision(None, after / norm if norm > 0.0 else 1.0, measured.share), after)
    if not isinstance(policy, ClipPolicy) or norm == 0.0:
        return Outcome(norm, UNTOUCHED, norm)
    more = {"step_size": _step_size(part, measured)} if getattr(policy, "wants_step_size", False) else {}
    if getattr(policy, "wants_loss", False):
        more["loss"] = loss
    decision = policy.decide(norm, parameter_norm=measured.parameter_norm, **more)
    if deferring:
        decision = Decision(decision.threshold, 1.0)
    if decision.coefficient != 1.0:
        scale_(part.gradients, decision.coefficient)
    return Outcome(norm, decision, norm * decision.coefficient)


def whole_norm(measured: Sequence[Measured]) -> float:
    """The norm over all parts: NaN if one is, else inf if one is."""
    if any(math.isnan(m.norm) for m in measured):
        return math.nan  # hypot would say inf beside an inf
    return math.hypot(*(m.norm for m in measured))


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """All parts as one."""
    norm, after = (math.hypot(*norms) for norms in zip(*((o.norm, o.clipped_norm) for o in outcomes), strict=True))
    return Outcome(norm, Decision(None, after / norm if norm > 0.0 else 1.0), after)


def _launch(part: Part, *, deferring: bool) -> dict[str, Tensor]:
    """Scalars on the device, by their name in :class:`Measured`."""
    policy = part.state.policy
    norm = global_norm(part.gradients)
    if isinstance(policy, TensorPolicy) and not deferring:
        share = policy.clip_(part.gradients, part.parameters, part.names, norm)
        return {"norm": norm, "clipped_norm": global_norm(part.gradients), "share": share}
    launched = {"norm": norm}
    if getattr(policy, "wants_parameter_norm", False):
        launched["parameter_norm"] = global_norm(part.trained)
    if getattr(policy, "wants_step_size", False) and len(part.by_rate or ()) > 1:
        launched["travel"] = global_norm([global_norm(own) * rate for rate, own in (part.by_rate or {}).items()])
    return launched


def _step_size(part: Part, measured: Measured) -> float | None:
    """How far the optimizer moves the parameters per unit of the gradient's norm; None where it does not go along it."""
    if part.by_rate is None:
        return None
    if measured.travel is not None and math.isfinite(measured.travel):
        return measured.travel / measured.norm
    return max(part.by_rate)


def _settle(part: Part, measured: Measured, *, deferring: bool) -> Measured:
    """Whether a norm of inf is true; rare, and then slow."""
    norm = true_norm(part.gradients)
    policy = part.state.policy
    if not math.isfinite(norm) or not isinstance(policy, TensorPolicy) or deferring:
        return Measured(norm, measured.parameter_norm)
    wide = [gradient.to(torch.float64) for gradient in part.gradients]
    share = policy.clip_(wide, part.parameters, part.names, global_norm(wide))
    for gradient, copy in zip(part.gradients, wide, strict=True):
        gradient.copy_(copy)
    return Measured(norm, clipped_norm=true_norm(part.gradients), share=float(share))
