"""What a run's profiles and events amount to, per module, layer and direction, as a verdict in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from lightning_gradwatch.events import EventKind, closes_episode

LAST_SAMPLES = 10
"""A verdict rests on the median over the last so many sampled steps: it is about how training ended up."""

LAST_SHARE = 1 / 3
"""… of those in this last share of the training, so that in a short run the begin is not counted to the end."""

# The four numbers of the detectors, repeated here because those load numpy and a command must start at once.
SEVERAL = 3
"""Vanishing is never judged from fewer sampled steps than this."""

VANISHING_SHARE = 0.5
"""A horizon shorter than this share of the sequence is vanishing."""

STARVING_SHARE = 0.01
"""A timestep whose total gradient is under this share of the largest starves."""

EXPLODING_FACTOR = 100.0
"""A gradient that grows more than so many times on its way back is exploding."""

Record = Mapping[str, Any]


class Verdict(StrEnum):
    """What is to be thought of one layer's gradient through time."""

    HEALTHY = "healthy"
    VANISHING = "vanishing"
    SHORTENED = "shortened"
    EXPLODING = "exploding"
    NOT_FINITE = "not finite"
    UNDECIDED = "undecided"
    NOT_OBSERVED = "not observed"


@dataclass(frozen=True)
class LayerSummary:
    """One layer and direction of one module.

    Args:
        module, kind, layer, direction: which; ``layer`` and ``direction`` are None for a module never observed.
        timesteps: the longest sequence among the last samples.
        horizon: timesteps, median over the last samples; ``horizon_censored``: the gradient outlives the sequence.
        growth_rate: nats per timestep, median over the last samples.
        exact: whether every one of the last samples was.
        samples: sampled steps in the whole run; ``events``: events that name this place.
        verdict: one word; ``sentence``: the same in a sentence, without the place.
        starves: some timesteps get under 1 % of the largest total gradient. Where none does, vanishing is no more than a note.
    """

    module: str
    kind: str
    layer: int | None
    direction: str | None
    timesteps: int
    horizon: int | None
    horizon_censored: bool
    growth_rate: float | None
    exact: bool
    samples: int
    events: int
    verdict: Verdict
    sentence: str
    starves: bool = False

    @property
    def line(self) -> str:
        """The whole verdict in one line of text."""
        return f"{self.place}{f' ({self.kind})' if self.kind else ''}: {self.verdict}. {self.sentence}"

    @property
    def is_note(self) -> bool:
        """Whether the gradient vanishes and no timestep starves of it: nothing to be alarmed about, as the event says too."""
        return self.verdict is Verdict.VANISHING and not self.starves

    @property
    def place(self) -> str:
        """Where, in words: ``rnn, layer 1 (reverse)``."""
        if self.layer is None:
            return self.module
        return f"{self.module}, layer {self.layer}" + (" (reverse)" if self.direction == "reverse" else "")


def summarise(profile_records: Iterable[Record], event_records: Iterable[Record]) -> list[LayerSummary]:
    """A verdict for each module, layer and direction that was profiled, and for each module that was not observed."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in profile_records:
        groups.setdefault((record["module"], record["layer"], record["direction"]), []).append(record)
    events: dict[str, list[Record]] = {}
    trouble: list[Record] = []
    for event in event_records:
        if event["kind"].startswith("NONFINITE") or event["kind"] == EventKind.STEP_SKIPPED:
            trouble.append(event)
        if event.get("module") is not None and not closes_episode(event):
            events.setdefault(event["module"], []).append(event)
    seen = list(dict.fromkeys(module for module, _, _ in groups))
    found = [
        _summary(group, groups[group], events.get(group[0], []), trouble)
        for group in sorted(groups, key=lambda group: (seen.index(group[0]), *group[1:]))
    ]
    for module, of_module in events.items():
        missed = [event for event in of_module if event["kind"] == EventKind.NOT_OBSERVED]
        if missed and module not in seen:
            found.append(_unseen(module, missed[-1], len(of_module)))
    return found


def reach(record: Record | None) -> float:
    """How many timesteps a gradient that is not short reaches back, a little more if it was cut off; 0 of one that is short or explodes."""
    if record is None or record.get("horizon") is None or not is_finite(record) or _growth(record) > EXPLODING_FACTOR:
        return 0.0
    horizon, censored = record["horizon"], bool(record["horizon_censored"])
    return horizon + 0.5 * censored if censored or horizon >= VANISHING_SHARE * record["timesteps"] else 0.0


def is_finite(record: Record) -> bool:
    """Whether every gradient norm of a profile is. NaN stands where no sequence reached."""
    return not any(map(math.isinf, record.get("total_max") or record["total"]))


def _summary(
    group: tuple[str, int, str], records: Sequence[Record], events: Sequence[Record], trouble: Sequence[Record]
) -> LayerSummary:
    module, layer, direction = group
    states = {record.get("state") for record in records}
    chosen = [record for record in records if "h" not in states or record.get("state") == "h"]
    steps = sorted({record["step"] for record in chosen})
    here = [
        event for event in events if event.get("layer") in (None, layer) and event.get("direction") in (None, direction)
    ]
    spoilt = {record["step"] for record in chosen if not is_finite(record)}
    skipped = {event["step"] for event in trouble if event["kind"] == EventKind.STEP_SKIPPED}
    sound = [step for step in steps if step not in spoilt]
    lost = [step for step in steps if step in spoilt - skipped and step > max(sound, default=-1)]
    recent = _recent(sound or steps)
    last = [record for record in chosen if record["step"] in recent]
    horizon, censored = (None, False) if lost else _median_horizon(last)
    rates = [rate for record in last if (rate := record.get("growth_rate")) is not None and math.isfinite(rate)]
    rate = median(rates) if rates and not lost else None
    timesteps = max(record["timesteps"] for record in last)
    exact = all(record.get("exact") is not False for record in last)
    starves = 2 * sum(map(_starves, last)) > len(last)
    if lost:
        verdict, sentence = Verdict.NOT_FINITE, _not_finite(lost, max(sound, default=0), trouble)
    else:
        verdict, sentence = _judge(last, here, timesteps, horizon, censored, rate, len(steps), starves)
    before = [record for record in chosen if record["step"] < min(recent)]
    reached = max(before, key=reach, default=None)
    if verdict is Verdict.VANISHING and reached is not None and reach(reached) > (horizon or 0):
        # A gradient that once reached far has shown what is there to learn; what has been learned needs little of it.
        verdict = Verdict.SHORTENED
        fall = re.split("[:;]", sentence)[0]
        sentence = f"{fall}; at step {reached['step']} it reached {reached['horizon']}, as learning may leave it."
    if not exact:
        reason = next((record["inexact_reason"] for record in reversed(last) if record.get("inexact_reason")), "")
        sentence += " The measurement is not exact" + (f": {reason.rstrip('.')}." if reason else ".")
    return LayerSummary(
        module=module,
        kind=last[-1].get("kind") or "",
        layer=layer,
        direction=direction,
        timesteps=timesteps,
        horizon=horizon,
        horizon_censored=censored,
        growth_rate=rate,
        exact=exact,
        samples=len(steps),
        events=len(here),
        verdict=verdict,
        sentence=sentence,
        starves=starves,
    )


def _recent(steps: Sequence[int]) -> set[int]:
    """Those of the last share of the training: told by the steps themselves, which do not depend on how many samples were kept."""
    late = [step for step in steps if step >= (1 - LAST_SHARE) * steps[-1]]
    return set(steps[-min(LAST_SAMPLES, max(SEVERAL, len(late))) :])


def _not_finite(lost: Sequence[int], since: int, trouble: Sequence[Record]) -> str:
    """From when on, and what was named first since the last sample that was as it should be."""
    named = [event for event in trouble if event["kind"] != EventKind.STEP_SKIPPED and event["step"] >= since]
    first = min(named, key=lambda event: event["step"], default=None)
    what = ""
    if first is not None:
        said = (first.get("message") or "").partition(". ")[0].rstrip(".")
        what = f" First came {first['kind']} at step {first['step']}: {said}."
    if len(lost) == 1:
        return f"In the last sample, of step {lost[0]}, the gradient is not finite.{what}"
    return f"From step {lost[0]} on the gradient is not finite.{what}"


def _starves(record: Record) -> bool:
    """Whether the end of the sequence that is furthest from the loss gets under 1 % of the largest total gradient."""
    total = [norm for norm in record["total"] if not math.isnan(norm)]
    if not total:
        return False
    return total[-1 if record.get("direction") == "reverse" else 0] < STARVING_SHARE * max(total)


def _growth(record: Record) -> float:
    return max(record.get("lagged") or [0.0])


def _judge(
    last: Sequence[Record],
    events: Sequence[Record],
    timesteps: int,
    horizon: int | None,
    censored: bool,
    rate: float | None,
    samples: int,
    starves: bool,
) -> tuple[Verdict, str]:
    norms = [norm for record in last for norm in record["total"]]
    if not any(norm > 0 for norm in norms):  # NaN stands where no sequence reached
        return Verdict.NOT_OBSERVED, _message(events) or "No gradient reached its hidden states."
    if timesteps <= 1:
        return Verdict.NOT_OBSERVED, _message(events) or "Its sequences have one timestep: nothing flows through time."
    peak = median(map(_growth, last))
    speed = "" if rate is None else f" (growth rate {rate:+.3g} nats per timestep)"
    if peak > EXPLODING_FACTOR:
        grown = f"{peak:.3g}-fold" if math.isfinite(peak) else "beyond every finite number"
        return Verdict.EXPLODING, f"The gradient grows {grown} within {timesteps} timesteps{speed}."
    if horizon is None:
        return Verdict.UNDECIDED, "The loss sends no gradient from which the horizon could be measured."
    if censored:
        return Verdict.HEALTHY, f"The gradient stays above 1 % for all of the {timesteps} timesteps{speed}."
    fall = f"The gradient falls under 1 % after {horizon} of {timesteps} timesteps{speed}"
    if horizon >= VANISHING_SHARE * timesteps:
        return Verdict.HEALTHY, f"{fall}."
    if samples < SEVERAL:
        return Verdict.UNDECIDED, f"{fall}, but {_count(samples, 'sample')} cannot tell whether it stays so."
    if starves:
        return Verdict.VANISHING, f"{fall}: what lies further back is not learned."
    enough = "every timestep has a loss near enough, so it matters only if the task needs a longer memory"
    return Verdict.VANISHING, f"{fall}; {enough}."


def _median_horizon(records: Sequence[Record]) -> tuple[int | None, bool]:
    """The lower median, where a horizon that the sequence cut off counts as longer than any that was seen."""
    cut = [record["horizon"] for record in records if record.get("horizon") is not None and record["horizon_censored"]]
    full = sorted(
        record["horizon"] for record in records if record.get("horizon") is not None and not record["horizon_censored"]
    )
    if not cut and not full:
        return None, False
    middle = (len(cut) + len(full) - 1) // 2
    return (full[middle], False) if middle < len(full) else (max(cut), True)


def _message(events: Sequence[Record]) -> str:
    """What an event already says about why nothing was seen."""
    kinds = (EventKind.NOT_OBSERVED, EventKind.NO_GRADIENT_THROUGH_TIME)
    return next((event.get("message") or "" for event in reversed(events) if event["kind"] in kinds), "")


def _unseen(module: str, event: Record, events: int) -> LayerSummary:
    return LayerSummary(
        module=module,
        kind="",
        layer=None,
        direction=None,
        timesteps=0,
        horizon=None,
        horizon_censored=False,
        growth_rate=None,
        exact=True,
        samples=0,
        events=events,
        verdict=Verdict.NOT_OBSERVED,
        sentence=event.get("message") or "It was not observed.",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
