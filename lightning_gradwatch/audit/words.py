"""The words of a verdict on clipping: what was seen, and what to do."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradwatch.audit.bounds import FOR_A_PERCENTILE, advised_bound, rounded_up, whose
from lightning_gradwatch.audit.evidence import ClipEvidence, percentile_of
from lightning_gradwatch.audit.phrases import acted, largest, late, left_alone, listed, looked_at, on
from lightning_gradwatch.audit.rules import (
    ClipVerdict,
    may_be_unnoticed,
    may_have_acted,
    may_have_acted_on_probes,
    share_of_all,
)

NO_BACKWARD = "its backward passes went past Lightning (use self.manual_backward(loss))"
NO_STEP = "no step was taken with a finite gradient"
NO_GRADIENT = "none of the parameters that it was given had a gradient"
NOT_ALL = "not every process that holds a part of its gradients watched"
ELSEWHERE = "its gradients are sharded, and the first process that holds a part of them tells what all saw"
SCATTERED = "its gradients are spread over the processes in several ways, or not summed yet"


def sentence_of(evidence: ClipEvidence, verdict: ClipVerdict) -> str:
    """What was seen, in one or two sentences."""
    return _SENTENCES[verdict](evidence)


def remedy_of(evidence: ClipEvidence, verdict: ClipVerdict) -> str:
    """What to do; empty where there is nothing to be done."""
    if any(sample.scale != 1.0 for sample in evidence.clipped):
        return _LATE_IN_LOOP if evidence.clippers.in_loop else _LATE
    if verdict is ClipVerdict.STEP_LIMITER:
        return _against_limiting(evidence)
    return _against_no_effect(evidence) if verdict is ClipVerdict.NO_EFFECT else ""


def _none(evidence: ClipEvidence) -> str:
    changed = [sample for sample in evidence.samples if sample.changed]
    if evidence.constant is not None:
        said = (
            f"{on(evidence, 'each of ')} the gradient was multiplied by {evidence.constant:.3g} between the "
            "backward pass and the step, whatever its norm: that is a fixed factor, not clipping."
        )
    elif evidence.under_bound:
        got = max(sample.after for sample in evidence.samples)
        said = (
            f"On {len(changed)} of {looked_at(evidence)} the gradient was made smaller between the backward pass and the step, "
            f"but not by gradient_clip_val={evidence.clippers.bound:g}: the largest norm that reached it there is {got:.3g}."
        )
    elif changed:
        said = (
            f"On {len(changed)} of {looked_at(evidence)} the gradient was changed between the backward pass "
            "and the step, but not as clipping does: some norms grew."
        )
    else:
        said = f"{on(evidence)} the optimizer got the gradient as the backward pass had left it."
    return f"{said}{largest(evidence)}{_named(evidence)}{_hooked(evidence)}"


def _never_acted(evidence: ClipEvidence) -> str:
    counted, who = evidence.counted, evidence.clippers
    if counted is not None and who.alone:
        return (
            f"No gradient reached the bound of {who.bound:g}: the largest norm of all "
            f"{counted.of_all} is {evidence.largest:.3g}."
        )
    if counted is not None:
        return f"{who.adaptive} clipped none of {counted.of_all}.{largest(evidence)}"
    return f"{left_alone(evidence)}.{largest(evidence)}"


def _safety_net(evidence: ClipEvidence) -> str:
    return f"{acted(evidence)}.{late(evidence)}{largest(evidence)}"


def _step_limiter(evidence: ClipEvidence) -> str:
    said = "it, not the gradient, sets the length of the steps"
    whole = evidence.clippers.goes_along and not (evidence.partial or evidence.uneven)
    rule = said if whole else "clipping is the rule, not the exception"
    return f"{acted(evidence)}: {rule}.{late(evidence)}{largest(evidence)}"


def _no_effect(evidence: ClipEvidence) -> str:
    who, untouched = evidence.clippers, "the optimizer got the gradient as the backward pass had left it"
    if evidence.elsewhere:
        what = "the gradients of another optimizer had been written to, and its own had not"
        return f"On {evidence.elsewhere} of {looked_at(evidence)}, between the backward pass and the step, {what}."
    code = _without_effect(evidence)
    if code:
        is_early = set(code) <= set(who.early) or (evidence.stale and not who.in_loop)
        other = f", or after the step{'' if who.in_loop else ', or for other parameters'}"
        before = f"before the backward pass{'' if is_early else other}"
        return f"{listed(code, 'clips', 'clip')} {before}: {on(evidence)[0].lower()}{on(evidence)[1:]} {untouched}.{largest(evidence)}"
    return (
        f"gradient_clip_val={who.bound:g} is set, but {who.override}, which takes the place of Lightning's own "
        f"clipping, does not clip with it: {on(evidence)[0].lower()}{on(evidence)[1:]} {untouched}.{largest(evidence)}"
    )


def _without_effect(evidence: ClipEvidence) -> tuple[str, ...]:
    """The user's functions that clip, and not what the optimizer gets."""
    who = evidence.clippers
    return who.surely or (who.named if evidence.stale else ())


def _undecided(evidence: ClipEvidence) -> str:
    if not evidence.samples:
        return f"No optimizer step could be looked at: {evidence.unseen or NO_STEP}."
    if evidence.counted is not None:
        return f"{acted(evidence)}: too few steps to tell a safety net from what limits every step.{late(evidence)}"
    share = may_have_acted(evidence)
    if may_have_acted_on_probes(evidence):
        return (
            f"{left_alone(evidence)}. Of each of them only the first of several gradients was looked at: it may have "
            f"acted on the others.{largest(evidence)}"
        )
    if not evidence.clipped and may_be_unnoticed(evidence):
        names = listed(evidence.clippers.named)
        return (
            f"{on(evidence)} the optimizer got the gradient as the backward pass had left it. {names} a clipping "
            "function: of sharded gradients it cannot be told whether that acts on them and its bound is not reached, "
            f"or whether it does not act on them.{largest(evidence)}"
        )
    if share is not None:
        return (
            f"{left_alone(evidence)}. That is too few to tell whether it ever acts: it may do so on up to {share:.0%} "
            f"of all steps.{largest(evidence)}"
        )
    low, high = share_of_all(evidence)
    return (
        f"{acted(evidence)}, which is too few to tell a safety net from what limits every step: the share of all "
        f"steps may be {low:.0%} or {high:.0%}.{late(evidence)}"
    )


_SENTENCES: dict[ClipVerdict, Callable[[ClipEvidence], str]] = {
    ClipVerdict.NONE: _none,
    ClipVerdict.NEVER_ACTED: _never_acted,
    ClipVerdict.SAFETY_NET: _safety_net,
    ClipVerdict.STEP_LIMITER: _step_limiter,
    ClipVerdict.NO_EFFECT: _no_effect,
    ClipVerdict.UNDECIDED: _undecided,
}


_LATE = (
    "Clip after unscaling: in the module's on_before_optimizer_step, which Lightning calls when the gradient is "
    "unscaled (not for fused optimizers), or with Trainer(gradient_clip_val=…) or AdaptiveClip()."
)


_LATE_IN_LOOP = (
    "Clip after unscaling: call scaler.unscale_(optimizer) first, then clip, then call scaler.step(optimizer)."
)


def _against_limiting(evidence: ClipEvidence) -> str:
    who = evidence.clippers
    if evidence.explosions and len(evidence.samples) >= FOR_A_PERCENTILE:
        return _for_explosions(evidence)
    if who.adaptive and who.bound is None:
        return (
            f"Nothing to do if that is meant, as with a percentile or a fixed norm. Else use {who.tools.clip()}, whose "
            "default acts on explosions alone, and lower the learning rate if it then acts at most steps too."
        )
    if who.by_value:
        return (
            'Clip the norm instead, which keeps the direction: gradient_clip_algorithm="norm" with a bound near '
            f"{advised_bound(evidence)}, {whose(evidence)}.{_longer(evidence)}"
        )
    if evidence.uneven:
        return (
            "Not all that was clipped was made smaller by the same factor, as by a bound on each tensor or entry: raise that "
            "bound until it acts on a few steps. A bound on the norm of all gradients, which keeps their direction, "
            f"would be one of about {advised_bound(evidence)}, {whose(evidence)}.{_longer(evidence)}"
        )
    what = _which_bound(evidence)
    if evidence.partial:
        return (
            f"Raise {what}, if it is one on the norm of those gradients, to about {rounded_up(max(evidence.clipped_norms))}, the "
            f"largest that was seen: then it acts on a few steps, if any.{_longer(evidence)}"
        )
    return f"Raise {what} to about {advised_bound(evidence)}, {whose(evidence)}: then it acts on a few steps.{_longer(evidence)}"


def _which_bound(evidence: ClipEvidence) -> str:
    """The Trainer's own, where that is what was clipped to."""
    who = evidence.clippers
    if evidence.at_bound:
        return "gradient_clip_val"
    return f"the bound in {who.override}" if who.override else "the bound"


def _for_explosions(evidence: ClipEvidence) -> str:
    """Where the gradient grows through time, a fixed norm that limits most steps is what the
    field's own problem is solved with (Pascanu et al. 2013, §4.1). Its figure is one that the
    optimizer got: of the norms before clipping nearly all may be explosions.
    """
    begun, who = evidence.explosions, evidence.clippers
    when = f"from step {begun[0]} on" if len(begun) == 1 else f"{len(begun)} times since step {begun[0]}"
    said = f"Explosions through time go on in this run (told {when}), so limiting its steps may be what it needs."
    if not who.adaptive or who.bound is not None:
        return f"{said} Leave the bound where it is, and lower the learning rate if the loss jumps."
    use = f"policy=Norm(max_norm={percentile_of([one.after for one in evidence.samples], _FEW):.2g})"
    return (
        f"{said} The alternative is {who.tools.clip(use)}: that is the {_FEW:.0f}th percentile of the norms which the optimizer got on "
        f"the {len(evidence.samples)} steps looked at. Lower the learning rate if the loss jumps."
    )


_FEW = 10.0
"""Per cent of the norms that the optimizer got, of which none is an explosion."""


def _longer(evidence: ClipEvidence) -> str:
    if evidence.median_coefficient is None or not evidence.clippers.goes_along:
        return ""
    times = 1 / evidence.median_coefficient
    return f" Steps are then some {times:.2g} times as long: lower the learning rate if the loss jumps."


def _against_no_effect(evidence: ClipEvidence) -> str:
    if evidence.elsewhere:
        return "Clip the parameters of the optimizer that is about to step, after its backward pass."
    if evidence.clippers.in_loop:
        return "Clip between the backward pass and optimizer.step()."
    if _without_effect(evidence):
        return (
            "Clip after the backward pass and before the step. In automatic optimization that is "
            "Trainer(gradient_clip_val=…), or the module's on_before_optimizer_step; in manual optimization "
            "self.clip_gradients(optimizer, …) between self.manual_backward(loss) and optimizer.step()."
        )
    return (
        "Have it call self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm), or take "
        "gradient_clip_val out."
    )


def _named(evidence: ClipEvidence) -> str:
    who = evidence.clippers
    if not who.named or evidence.for_others:
        return ""
    said = "it is not called, or not between the backward pass and the step, or for other parameters"
    if who.in_loop:
        said = "it is not called between the backward pass and the step, or for other parameters"
    return f" {listed(who.named)} a clipping function: {said}."


def _hooked(evidence: ClipEvidence) -> str:
    number = evidence.clippers.hooked
    if not number:
        return ""
    hooks = (
        "1 parameter has a hook on its gradient"
        if number == 1
        else f"{number} parameters have hooks on their gradients"
    )
    return f" {hooks}, which act within the backward pass: what they do to it is not seen here."
