"""The words of a verdict on clipping: what was seen, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning_gradwatch.audit.evidence import ClipEvidence
from lightning_gradwatch.audit.rules import ClipVerdict, interval

NO_BACKWARD = "its backward passes went past Lightning (use self.manual_backward(loss))"
NO_STEP = "no step was taken with a finite gradient"


def sentence_of(found: ClipEvidence, verdict: ClipVerdict) -> str:
    """What was seen, in one or two sentences."""
    return _SENTENCES[verdict](found)


def remedy_of(found: ClipEvidence, verdict: ClipVerdict) -> str:
    """What to do; empty where there is nothing to be done."""
    if any(sample.scale != 1.0 for sample in found.clipped):
        return _LATE_IN_LOOP if found.clippers.in_loop else _LATE
    if verdict is ClipVerdict.STEP_LIMITER:
        return _against_limiting(found)
    return _against_no_effect(found) if verdict is ClipVerdict.NO_EFFECT else ""


def _none(found: ClipEvidence) -> str:
    changed = [sample for sample in found.samples if sample.changed]
    if found.constant is not None:
        said = (
            f"{_on(found, 'each of ')} the gradient was multiplied by {found.constant:.3g} between the "
            "backward pass and the step, whatever its norm: that is a fixed factor, not clipping."
        )
    elif changed:
        said = (
            f"On {len(changed)} of {_looked_at(found)} the gradient was changed between the backward pass "
            "and the step, but not as clipping does: some norms grew."
        )
    else:
        said = f"{_on(found)} the optimizer got the gradient as the backward pass had left it."
    return f"{said}{_largest(found)}{_named(found)}{_hooked(found)}"


def _never_acted(found: ClipEvidence) -> str:
    counted, who = found.counted, found.clippers
    if counted is not None and who.alone:
        return (
            f"No gradient reached the bound of {who.bound:g}: the largest norm of all "
            f"{_steps(counted.steps)} is {found.largest:.3g}."
        )
    if counted is not None:
        return f"{who.adaptive} clipped none of {_steps(counted.steps)}.{_largest(found)}"
    whose = " and ".join(who.names[:2]) if who.bound is not None or who.adaptive else ""
    if whose:
        return f"{_on(found)} {whose} left the gradient as it was.{_largest(found)}"
    return (
        f"{_on(found)} something wrote to the gradient between the backward pass and the step and left it "
        f"as it was, as clipping does whose bound is not reached.{_largest(found)}"
    )


def _safety_net(found: ClipEvidence) -> str:
    return f"{_acted(found)}.{_late(found)}{_largest(found)}"


def _step_limiter(found: ClipEvidence) -> str:
    said = "it, not the gradient, sets the length of the steps"
    rule = said if found.clippers.goes_along else "clipping is the rule, not the exception"
    return f"{_acted(found)}: {rule}.{_late(found)}{_largest(found)}"


def _no_effect(found: ClipEvidence) -> str:
    who, untouched = found.clippers, "the optimizer got the gradient as the backward pass had left it"
    if found.elsewhere:
        what = "the gradients of another optimizer had been written to, and its own had not"
        return f"On {found.elsewhere} of {_looked_at(found)}, between the backward pass and the step, {what}."
    if who.surely or who.named:
        names = " and ".join(who.surely or who.named)
        before = "before the backward pass" if found.stale else "before the backward pass, or for other parameters"
        before = "before the backward pass, or after the step" if who.in_loop else before
        return f"{names} clips {before}: {_on(found)[0].lower()}{_on(found)[1:]} {untouched}.{_largest(found)}"
    return (
        f"gradient_clip_val={who.bound:g} is set, but {who.override}, which takes the place of Lightning's own "
        f"clipping, does not clip with it: {_on(found)[0].lower()}{_on(found)[1:]} {untouched}.{_largest(found)}"
    )


def _undecided(found: ClipEvidence) -> str:
    if not found.samples:
        return f"No optimizer step could be looked at: {found.unseen or NO_STEP}."
    if found.counted is not None:
        return f"{_acted(found)}: too few steps to tell a safety net from what limits every step.{_late(found)}"
    low, high = interval(len(found.clipped), len(found.samples))
    return (
        f"{_acted(found)}, which is too few to tell a safety net from what limits every step: the share of all "
        f"steps may be {low:.0%} or {high:.0%}.{_late(found)}"
    )


_SENTENCES: dict[ClipVerdict, Callable[[ClipEvidence], str]] = {
    ClipVerdict.NONE: _none,
    ClipVerdict.NEVER_ACTED: _never_acted,
    ClipVerdict.SAFETY_NET: _safety_net,
    ClipVerdict.STEP_LIMITER: _step_limiter,
    ClipVerdict.NO_EFFECT: _no_effect,
    ClipVerdict.UNDECIDED: _undecided,
}


def _acted(found: ClipEvidence) -> str:
    """On how many steps the gradient was made smaller, and by how much."""
    who, counted = found.clippers, found.counted
    name = who.adaptive if counted is not None and not who.alone else "It"
    share = "" if found.median_coefficient is None else f", to {found.median_coefficient:.2g} of itself in the median"
    seen = f"{len(found.clipped)} of {_looked_at(found)}"
    on = seen if counted is None else f"{counted.clipped:,} of {_steps(counted.steps)}"
    return f"{name} made the gradient smaller on {on}{share}"


def _late(found: ClipEvidence) -> str:
    late = [sample for sample in found.clipped if sample.scale != 1.0]
    if not late:
        return ""
    scale = late[-1].scale
    return (
        f" It did so before the gradient scaler had taken its factor of {scale:,.6g} out of the gradient: a "
        f"bound of 1 acts there as one of {1 / scale:.2g}."
    )


_LATE = (
    "Clip after unscaling: in the module's on_before_optimizer_step, which Lightning calls when the gradient is "
    "unscaled (not for fused optimizers), or with Trainer(gradient_clip_val=…) or AdaptiveClip()."
)


_LATE_IN_LOOP = (
    "Clip after unscaling: call scaler.unscale_(optimizer) first, then clip, then call scaler.step(optimizer)."
)


def _against_limiting(found: ClipEvidence) -> str:
    who = found.clippers
    if who.adaptive and who.bound is None:
        return (
            "Nothing to do if that is meant, as with a percentile or a fixed norm. Else use AdaptiveClip(), whose "
            "default acts on explosions alone, and lower the learning rate if it then acts at most steps too."
        )
    if who.by_value:
        return (
            'Clip the norm instead, which keeps the direction: gradient_clip_algorithm="norm" with a bound near '
            f"{_bound(found)}, {_whose(found)}.{_longer(found)}"
        )
    what = "the bound" if who.bound is None else "gradient_clip_val"
    return f"Raise {what} to about {_bound(found)}, {_whose(found)}: then it acts on a few steps.{_longer(found)}"


def _whose(found: ClipEvidence) -> str:
    if len(found.samples) >= _SEVERAL:
        return f"under which {_MOST:.0f} % of the gradient norms lay"
    return "the largest gradient norm that was seen"


def _bound(found: ClipEvidence) -> str:
    """Rounded up to two digits: rounded down it would cut off what it is meant to let through.
    Not the largest of many norms, which is the very one that clipping is for.
    """
    bound = found.percentile(_MOST) if len(found.samples) >= _SEVERAL else found.largest
    bound = bound or found.largest  # of gradients that are mostly zero
    unit = 10.0 ** (math.floor(math.log10(bound)) - 1)
    return f"{math.ceil(bound / unit * (1 - 1e-9)) * unit:.2g}"


_SEVERAL = 10
"""Samples from which on a percentile is more than one of them."""

_MOST = 90.0
"""Per cent of the norms, which are ordinary ones."""


def _longer(found: ClipEvidence) -> str:
    if found.median_coefficient is None or not found.clippers.goes_along:
        return ""
    times = 1 / found.median_coefficient
    return f" Steps are then some {times:.2g} times as long: lower the learning rate if the loss jumps."


def _against_no_effect(found: ClipEvidence) -> str:
    if found.elsewhere:
        return "Clip the parameters of the optimizer that is about to step, after its backward pass."
    if found.clippers.in_loop:
        return "Clip between the backward pass and optimizer.step()."
    if found.clippers.surely or found.clippers.named:
        return (
            "Clip after the backward pass and before the step. In automatic optimization that is "
            "Trainer(gradient_clip_val=…), or the module's on_before_optimizer_step; in manual optimization "
            "self.clip_gradients(optimizer, …) between self.manual_backward(loss) and optimizer.step()."
        )
    return (
        "Have it call self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm), or take "
        "gradient_clip_val out."
    )


def _on(found: ClipEvidence, each: str = "") -> str:
    """``On the 10 steps looked at, of 480,``."""
    return f"On {each}{_looked_at(found)}{',' if found.steps > len(found.samples) else ''}"


def _looked_at(found: ClipEvidence) -> str:
    number = len(found.samples)
    of = f", of {found.steps:,}" if found.steps > number else ""
    return f"the one step looked at{of}" if number == 1 else f"the {number} steps looked at{of}"


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number:,} steps"


def _largest(found: ClipEvidence) -> str:
    if not found.samples:
        return ""
    if len(found.samples) == 1:
        return f" The gradient norm was {found.samples[0].before:.3g}."
    of_all = found.counted is not None and found.counted.largest is not None
    seen = "" if of_all or found.steps <= len(found.samples) else f" of the {_steps(len(found.samples))} looked at"
    return f" The gradient norm{seen}: median {found.percentile(50):.3g}, largest {found.largest:.3g}."


def _named(found: ClipEvidence) -> str:
    who = found.clippers
    if not who.named or found.for_others:
        return ""
    said = "it is not called, or before the backward pass, or for other parameters"
    if who.in_loop:
        said = "it is not called between the backward pass and the step, or for other parameters"
    return f" {' and '.join(who.named)} names a clipping function: {said}."


def _hooked(found: ClipEvidence) -> str:
    number = found.clippers.hooked
    if not number:
        return ""
    own = (
        "1 parameter has a hook on its gradient"
        if number == 1
        else f"{number} parameters have hooks on their gradients"
    )
    return f" {own}, which act within the backward pass: what they do to it is not seen here."
