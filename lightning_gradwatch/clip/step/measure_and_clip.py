"""One optimizer step of AdaptiveClip: measure all groups in one host
sync, then clip each by its policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_gradwatch.clip import ClipPolicy, Decision, StepReading, TensorPolicy
from lightning_gradwatch.clip.norms import global_norm, read, scale_, true_norm
from lightning_gradwatch.clip.step.groups import PolicyGroup
from lightning_gradwatch.clip.step.state import OptimizerState
from lightning_gradwatch.clip.tensor_policy import measure_and_clip_
from lightning_gradwatch.recurrent.capture.direct_norm import DirectNorms

UNTOUCHED = Decision(None, 1.0)


@dataclass(frozen=True)
class Measured:
    """What was read from the device for one group.

    Args:
        norm: before clipping.
        parameter_norm: where its policy wants it.
        travel: how far an unclipped step moves the parameters, where its policy
            wants that and it takes a reading.
        direct_norm, recurrent_norm: of what the loss sends to the recurrent modules, and of the
            gradient of their recurrent weights, where its policy wants that and it is known.
        clipped_norm, share: where its policy has clipped the tensors already.
    """

    norm: float
    parameter_norm: float | None = None
    travel: float | None = None
    direct_norm: float | None = None
    recurrent_norm: float | None = None
    clipped_norm: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one group, or of all: norm before, decision, norm after."""

    norm: float
    decision: Decision
    clipped_norm: float


def measure(
    groups: Sequence[PolicyGroup],
    *,
    deferring: bool,
    losses: Sequence[Tensor] = (),
    common: Tensor | None = None,
    direct: DirectNorms | None = None,
    scale: Tensor | float = 1.0,
) -> tuple[list[Measured], float | None, float | None]:
    """Norms of all groups, this process's last loss, and the mean of all losses, which are read
    beside them; where a policy works on tensors, it clips them on the way.

    Args:
        groups: of one optimizer.
        deferring: another is to clip.
        losses: of this process's backward passes since the last step, scalars.
        common: the mean over all processes, where there are several; NaN is not known.
        direct: what has arrived at the recurrent modules, by ``scale`` too large.
    """
    readings = [_launch(group, deferring=deferring) for group in groups]
    if direct is not None:
        for group, reading in zip(groups, readings, strict=True):
            reading.update(_launch_growth(group, direct, scale))
    scalars = [scalar for reading in readings for scalar in reading.values()]
    values = iter(read([*scalars, *losses, *([] if common is None else [common])]))
    measured = [Measured(**{name: next(values) for name in reading}) for reading in readings]
    if any(math.isinf(m.norm) for m in measured):
        both = zip(groups, measured, strict=True)
        measured = [_settle(p, m, deferring=deferring) if math.isinf(m.norm) else m for p, m in both]
    of_passes = [next(values) for _ in losses]
    mean = next(values, sum(of_passes) / len(of_passes) if of_passes else math.nan)
    return measured, of_passes[-1] if of_passes else None, None if math.isnan(mean) else mean


def clip(group: PolicyGroup, measured: Measured, *, deferring: bool, loss: float | None = None) -> Outcome:
    """Let the group's policy decide, and act on it.

    Args:
        loss: the same on all processes; None where it is not known.
    """
    policy, norm = group.state.policy, measured.norm
    if measured.clipped_norm is not None:
        after = measured.clipped_norm
        if not getattr(policy, "raise_small", False):
            after = min(after, norm)  # the two may differ by a rounding
        return Outcome(norm, Decision(None, after / norm if norm > 0.0 else 1.0, measured.share), after)
    if not isinstance(policy, ClipPolicy) or norm == 0.0:
        return Outcome(norm, UNTOUCHED, norm)
    decision = policy.decide(_reading(group, measured, policy, loss))
    if deferring:
        decision = Decision(decision.threshold, 1.0)
    if decision.coefficient != 1.0:
        scale_(group.gradients, decision.coefficient)
    return Outcome(norm, decision, norm * decision.coefficient)


def whole_norm(measured: Sequence[Measured]) -> float:
    """The norm over all groups: NaN if one is, else inf if one is."""
    if any(math.isnan(m.norm) for m in measured):
        return math.nan  # hypot would say inf beside an inf
    return math.hypot(*(m.norm for m in measured))


def headline_of(groups: Sequence[PolicyGroup], outcomes: Sequence[Outcome], state: OptimizerState) -> Outcome:
    """What became of the parameters that no pattern names; of all that are clipped,
    where none of these has a gradient.
    """
    if groups[0].state is state.rest:
        return outcomes[0]
    clipped = [outcome for group, outcome in zip(groups, outcomes, strict=True) if group.state.policy is not None]
    return _combine(clipped or outcomes)


def _combine(outcomes: Sequence[Outcome]) -> Outcome:
    """All groups as one."""
    norm, after = (math.hypot(*norms) for norms in zip(*((o.norm, o.clipped_norm) for o in outcomes), strict=True))
    return Outcome(norm, Decision(None, after / norm if norm > 0.0 else 1.0), after)


def _launch(group: PolicyGroup, *, deferring: bool) -> dict[str, Tensor]:
    """Scalars on the device, by their name in :class:`Measured`."""
    policy = group.state.policy
    if isinstance(policy, TensorPolicy) and not deferring:
        return measure_and_clip_(policy, group.gradients, group.parameters, group.names)._asdict()
    launched = {"norm": global_norm(group.gradients)}
    if getattr(policy, "wants_parameter_norm", False):
        launched["parameter_norm"] = global_norm(group.trained)
    if getattr(policy, "wants_step_size", False) and len(group.by_rate or ()) > 1:
        launched["travel"] = global_norm(
            [global_norm(gradients) * rate for rate, gradients in (group.by_rate or {}).items()]
        )
    return launched


def _launch_growth(group: PolicyGroup, direct: DirectNorms, scale: Tensor | float) -> dict[str, Tensor]:
    """Two norms that tell the growth through time, where the group has recurrent weights and knows
    what arrived.
    """
    places = direct.recurrent(group.parameters)
    arrived = direct.take([group.parameters[place] for place in places])
    if arrived is None or not getattr(group.state.policy, "wants_growth", False):
        return {}
    return {"direct_norm": arrived / scale, "recurrent_norm": global_norm([group.gradients[place] for place in places])}


def _reading(group: PolicyGroup, measured: Measured, policy: ClipPolicy, loss: float | None) -> StepReading:
    direct, recurrent = measured.direct_norm, measured.recurrent_norm
    sized = getattr(policy, "wants_step_size", False)
    return StepReading(
        measured.norm,
        parameter_norm=measured.parameter_norm,
        step_size=_step_size(group, measured) if sized else None,
        loss=loss,
        direct_norm=direct,
        growth=recurrent / direct if direct and recurrent is not None else None,
        momentum=group.momentum if sized else 0.0,
    )


def _step_size(group: PolicyGroup, measured: Measured) -> float | None:
    """How far the optimizer moves the parameters per unit of the gradient's norm; None
    where it does not go along it.
    """
    if group.by_rate is None:
        return None
    if measured.travel is not None and math.isfinite(measured.travel):
        return measured.travel / measured.norm
    return max(group.by_rate)


def _settle(group: PolicyGroup, measured: Measured, *, deferring: bool) -> Measured:
    """Whether a norm of inf is true; rare, and then slow."""
    norm = true_norm(group.gradients)
    policy = group.state.policy
    if not math.isfinite(norm) or not isinstance(policy, TensorPolicy) or deferring:
        return replace(measured, norm=norm, travel=None)
    wide = [gradient.to(torch.float64) for gradient in group.gradients]
    share = policy.clip_(wide, group.parameters, group.names, global_norm(wide))
    for gradient, copy in zip(group.gradients, wide, strict=True):
        gradient.copy_(copy)
    return Measured(norm, clipped_norm=true_norm(group.gradients), share=float(share))
