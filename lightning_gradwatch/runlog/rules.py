"""The rules by which a layer gets its verdict, in order: the first that applies decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import starmap
from statistics import median

from lightning_gradwatch.events import EventKind, closes_episode
from lightning_gradwatch.growth import levels_off, rate_in_words
from lightning_gradwatch.plain import count_of
from lightning_gradwatch.runlog.evidence import Evidence
from lightning_gradwatch.runlog.measures import growth, middle, reach
from lightning_gradwatch.runlog.verdict import Verdict
from lightning_gradwatch.thresholds import (
    BLOCKED_SHARE,
    EXPLODING_FACTOR,
    LEARNED_LOSS,
    RISEN_LOSS,
    SATURATION_SAMPLES,
    SEVERAL,
    VANISHING_SHARE,
    is_few,
)

Said = tuple[Verdict, str]
"""A verdict and its sentence, without the place."""

Rule = Callable[[Evidence], Said | None]


def judge(evidence: Evidence) -> Said:
    """The verdict of the first rule that applies."""
    return next(said for rule in RULES if (said := rule(evidence)) is not None)


def _not_finite(evidence: Evidence) -> Said | None:
    """From when on, and what was named first since the last sample that was as it should be."""
    if not evidence.lost:
        return None
    first, what = evidence.first_trouble, ""
    if first is not None:
        said = (first.get("message") or "").rstrip(".")
        what = f" First came {first['kind']} at step {first['step']}: {said}."
    if len(evidence.lost) == 1:
        return Verdict.NOT_FINITE, f"It was the last sample.{what}"
    return Verdict.NOT_FINITE, f"No sample from then on is finite.{what}"


def _diverged(evidence: Evidence) -> Said | None:
    """Of the whole training: a layer's horizon says little where the loss has run away."""
    told = [event for event in evidence.everywhere if event["kind"] == EventKind.DIVERGED]
    return (Verdict.DIVERGED, told[-1]["message"] or "") if told and not closes_episode(told[-1]) else None


def _without_gradient(evidence: Evidence) -> Said | None:
    norms = [norm for record in evidence.last for norm in record["total"]]
    if any(norm > 0 for norm in norms):  # NaN stands where no sequence reached
        return None
    if evidence.message(EventKind.FEW_TIMESTEPS_REACHED):
        return (
            Verdict.BARELY_REACHED,
            "The loss reads the other direction alone: none of its own timesteps gets a gradient.",
        )
    return Verdict.NOT_OBSERVED, evidence.message(EventKind.NOT_OBSERVED) or "No gradient reached its hidden states."


def _without_time(evidence: Evidence) -> Said | None:
    severed = evidence.message(EventKind.NO_GRADIENT_THROUGH_TIME)
    if evidence.timesteps > 1 and (not severed or any(any(record["lagged"][1:]) for record in evidence.last)):
        return None
    if severed:
        return Verdict.NO_GRADIENT_THROUGH_TIME, severed
    if evidence.handed_over:
        return Verdict.UNDECIDED, HANDED_OVER
    if evidence.left_out:
        return Verdict.UNDECIDED, LEFT_OUT
    said = evidence.message(EventKind.NOT_OBSERVED).partition(" was not observed.")[2].strip()
    if evidence.truncated:
        return Verdict.NOT_OBSERVED, said or WITHOUT_GRAPH
    return (
        Verdict.NOT_OBSERVED,
        said or "Each backward pass was measured over one timestep of it: there is no way back through time to follow.",
    )


def _mismatched(evidence: Evidence) -> Said | None:
    """Lags that were worked out with another decay than the scan's own tell nothing of it."""
    if evidence.exact or not evidence.message(EventKind.SCAN_MISMATCH):
        return None
    return Verdict.UNDECIDED, "The horizon is not known: the states are not what the marked decay and inputs make."


def _exploding(evidence: Evidence) -> Said | None:
    peak = median(map(growth, evidence.last))
    if not peak > EXPLODING_FACTOR:
        return None
    grown = f"{peak:.3g}-fold" if math.isfinite(peak) else "beyond every finite number"
    return (
        Verdict.EXPLODING,
        f"The gradient grows {grown} within {count_of(evidence.timesteps, 'timestep')}{_speed(evidence)}.",
    )


def _saturated(evidence: Evidence) -> Said | None:
    event = evidence.ongoing(EventKind.SATURATED_GATES)
    if event is None:
        return None
    said = (event.get("message") or "").partition(": ")[2] or "nearly all of its gates are saturated."
    return Verdict.SATURATED, f"Little gradient reaches its weights: {said}"


def _perhaps_saturated(evidence: Evidence) -> Said | None:
    share = evidence.gate_share
    if share is None or share >= BLOCKED_SHARE or evidence.samples >= SATURATION_SAMPLES:
        return None
    said = f"In the only sample {share:.2g} times what the loss sends to its hidden states reaches its weights"
    return Verdict.UNDECIDED, f"{said}; one cannot tell whether it stays so."


def _barely_reached(evidence: Evidence) -> Said | None:
    if evidence.dues and all(starmap(is_few, evidence.dues)):
        reached, timesteps = map(middle, zip(*evidence.dues, strict=True))
        rest = timesteps - reached
        steps = "step" if reached == 1 else f"{reached:,} steps"
        others = f"the other {rest:,} of {timesteps:,} timesteps get" if rest > 1 else "the other timestep gets"
        return Verdict.BARELY_REACHED, f"The loss reaches it at its own first {steps} only; {others} no gradient."
    if order_in_doubt(evidence):
        return Verdict.BARELY_REACHED, "Hardly any of its states gets a gradient."
    return None


def order_in_doubt(evidence: Evidence) -> bool:
    """Whether one sequence alone gets a gradient, as when what the module takes for
    sequences is time.
    """
    some, batch = evidence.with_gradient or (0, 0)
    doubtful = evidence.time_first or (evidence.fused and bool(evidence.message(EventKind.ONE_SEQUENCE_REACHED)))
    return doubtful and some == 1 < SEVERAL <= batch


def _without_lags(evidence: Evidence) -> Said | None:
    if evidence.horizon is not None:
        return None
    if evidence.unfollowed is not None:
        return Verdict.UNDECIDED, f"The horizon is not known: {evidence.unfollowed}."
    return (
        Verdict.UNDECIDED,
        "The horizon is not known: no gradient was followed back from the loss of a single timestep.",
    )


def _outlives(evidence: Evidence) -> Said | None:
    if not evidence.censored:
        return None
    assert evidence.horizon is not None
    followed = evidence.horizon + 1  # the longest lag seen, which the sequence need not be
    of = "" if followed >= evidence.timesteps else f" over which it could be followed, of {evidence.timesteps}"
    seen = min(followed, evidence.timesteps)
    due = min([evidence.real_timesteps, *(reached for reached, _ in evidence.dues)])
    if followed < VANISHING_SHARE * due:
        return (
            Verdict.UNDECIDED,
            f"The gradient could be followed over {seen} of {count_of(evidence.timesteps, 'timestep')} only, too few to judge.",
        )
    return (
        Verdict.HEALTHY,
        f"The gradient stays above 1 % for all of the {count_of(seen, 'timestep')}{of}{_speed(evidence)}.",
    )


def _long(evidence: Evidence) -> Said | None:
    assert evidence.horizon is not None
    return (
        (Verdict.HEALTHY, f"{_fall(evidence)}.")
        if evidence.horizon >= VANISHING_SHARE * evidence.due_timesteps
        else None
    )


def _too_few(evidence: Evidence) -> Said | None:
    if evidence.samples >= SEVERAL:
        return None
    return (
        Verdict.UNDECIDED,
        f"{_fall(evidence)}, but {count_of(evidence.samples, 'sample')} cannot tell whether it stays so.",
    )


def _shortened(evidence: Evidence) -> Said | None:
    """A gradient that once reached far has shown what is there to learn; what has been learned
    needs little of it. Where the loss has risen since, it was not learning that shortened it.
    """
    reached = max(evidence.before, key=reach, default=None)
    first, last = evidence.losses or (math.nan, math.nan)
    far = max(evidence.horizon or 0, VANISHING_SHARE * evidence.due_timesteps)
    if reached is None or reach(reached) <= far or last > RISEN_LOSS * first > 0:
        return None
    earlier = f"at step {reached['step']} it reached {reached['horizon']}"
    fell = f" The loss went from {first:.3g} to {last:.3g}." if math.isfinite(first) and math.isfinite(last) else ""
    why = " What has been learned needs little gradient." if last < LEARNED_LOSS * first and first > 0 else fell
    return Verdict.SHORTENED, f"{_fall(evidence)}; {earlier}.{why}"


def _vanishing(evidence: Evidence) -> Said:
    if evidence.padded:
        return Verdict.VANISHING, f"{_fall(evidence)}{_low(evidence)}: {_PADDED.format(evidence.padded)}"
    if evidence.starves and evidence.low:
        return (
            Verdict.VANISHING,
            f"{_fall(evidence)}{_low(evidence)}: what lies further back teaches next to nothing, which the task may not need.",
        )
    if evidence.starves and levels_off(evidence.rate, evidence.real_timesteps):
        return Verdict.VANISHING, f"{_fall(evidence)}, and then hardly any more: {_STEADY}"
    if evidence.starves:
        return Verdict.VANISHING, f"{_fall(evidence)}: what lies further back is not learned."
    enough = "yet every timestep gets 1 % of the largest gradient or more, so it matters only if the task needs a longer memory"
    return Verdict.VANISHING, f"{_fall(evidence)}; {enough}."


RULES: tuple[Rule, ...] = (
    _not_finite,
    _diverged,
    _without_gradient,
    _without_time,
    _mismatched,
    _exploding,
    _saturated,
    _perhaps_saturated,
    _barely_reached,
    _without_lags,
    _outlives,
    _long,
    _too_few,
    _shortened,
    _vanishing,
)
"""The gravest come first; the last one applies to whatever is left."""

_STEADY = "what lies further back gets little, but gets it from all timesteps alike; whether it is learned the loss has to show."

_PADDED = (
    "the {} timesteps before the loss have equal inputs, as padding has, and have to be crossed first. If they are padding, pack the "
    "sequences, or read each one's last real step."
)

LEFT_OUT = "Each of its calls has one timestep, and how far the gradient reaches from call to call was not measured."

WITHOUT_GRAPH = "Each call has one timestep and is given a state without a graph: if it is carried over, nothing flows through time."

HANDED_OVER = (
    "Each of its calls has one timestep, and the state that comes in is a leaf of its own: a gradient that is handed back by hand is in "
    "the totals, but how far it reaches was not measured."
)


def _fall(evidence: Evidence) -> str:
    real = evidence.real_timesteps
    padding = evidence.typical["timesteps"] - real
    rest = f", beside {padding} more whose inputs are equal, as in padding" if padding else ""
    of = (
        f" of {count_of(real, 'timestep')}"
        if (evidence.horizon or 0) <= real
        else f" timesteps, more than the {real} that count"
    )
    return f"The gradient falls under 1 % after {evidence.horizon}{of}{rest}{_speed(evidence)}"


def _low(evidence: Evidence) -> str:
    """That the loss is low by now, where it is."""
    if not evidence.low or evidence.losses is None:
        return ""
    first, last = evidence.losses
    return f", with the loss down to {last:.2g} from {first:.2g}"


def _speed(evidence: Evidence) -> str:
    """In brackets, how far the horizon moved, how fast the gradient fades or grows, and how long
    the sequences are where that differs much.
    """
    parts: list[str] = []
    if evidence.lengths is not None:
        parts.append("its sequences have {:,} to {:,} timesteps".format(*evidence.lengths))
    behind = evidence.real_timesteps - evidence.due_timesteps
    if behind and not evidence.censored:
        parts.append(f"no loss reaches its last {behind:,}" if behind > 1 else "no loss reaches its last one")
    if evidence.spread is not None:
        parts.append(f"{evidence.spread} in the last {evidence.spread.samples} samples")
    if evidence.rate is not None:
        parts.append(rate_in_words(evidence.rate, None if evidence.censored else evidence.horizon))
    return f" ({'; '.join(parts)})" if parts else ""
