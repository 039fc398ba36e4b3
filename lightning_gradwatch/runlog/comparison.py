"""A run held against another one: what has become worse."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lightning_gradwatch.audit import ClipVerdict
from lightning_gradwatch.events import Severity, closes_episode
from lightning_gradwatch.plain import count_of
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import LayerSummary, summarise
from lightning_gradwatch.runlog.verdict import Verdict
from lightning_gradwatch.thresholds import HORIZON_VARIES_FACTOR, HORIZON_VARIES_TIMESTEPS

HORIZON_TOLERANCE = 1 - 1 / HORIZON_VARIES_FACTOR
"""Share of a horizon that it may lose: one that moves by less is said to be steady within a run."""


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        worse: what is worse than in the other run, a sentence each.
        unknown: what could not be compared, and why.
    """

    worse: list[str]
    unknown: list[str]


def compare(
    run: Run, base: Run, *, horizon_tolerance: float = HORIZON_TOLERANCE, allowed: Collection[str] = ()
) -> Comparison:
    """What is worse in ``run`` than in ``base``: a horizon that has shrunk, a clipping that has
    come to limit the steps, a critical event or verdict of which ``base`` has none at that place.

    Args:
        horizon_tolerance: share of a horizon that it may lose, in [0, 1). It may always lose a
            timestep or two.
        allowed: kinds of critical events that may be new.

    Raises:
        ValueError: the runs have no module in common.
    """
    now, then = (summarise(one.profile_records, one.event_records) for one in (run, base))
    before = {layer.place: layer for layer in then}
    common = [layer for layer in now if layer.place in before]
    if before and not common:
        raise ValueError(_nothing_in_common(run, now, base, then))
    worse: list[str] = []
    unknown = [f"{place} is not in this run." for place in before if place not in {layer.place for layer in common}]
    unknown += [f"{layer.place} is not in the other run." for layer in now if layer.place not in before]
    for layer in common:
        said, open_ = _reach(layer, before[layer.place], horizon_tolerance)
        worse += said
        unknown += open_
    limits, open_ = _limits(run, base)
    unknown += open_
    worse += [*limits, *_criticals(run, base, allowed), *_verdicts(common, before)]
    if run.clipping and not base.clipping:
        unknown.append("The other run says nothing of clipping.")
    return Comparison(worse, unknown)


def _nothing_in_common(run: Run, now: list[LayerSummary], base: Run, then: list[LayerSummary]) -> str:
    """Whether they are of two models, or one of them measured nothing."""
    in_run, in_base = (", ".join(layer.place for layer in layers) or "none" for layers in (now, then))
    found = f"found {in_run} in {str(run.path)!r} and {in_base} in {str(base.path)!r}."
    if {layer.module for layer in now} & {layer.module for layer in then}:
        return (
            f"The runs must have a measured layer in common; {found} A module without a layer was not measured there."
        )
    return f"The runs must have a module in common; {found} Compare runs of one model."


def _reach(now: LayerSummary, then: LayerSummary, tolerance: float) -> tuple[list[str], list[str]]:
    """Whether the horizon has shrunk, or why this is not known."""
    if then.horizon is None:
        return [], []
    was = f"{'at least ' if then.horizon_censored else ''}{then.horizon} of {count_of(then.timesteps, 'timestep')}"
    if now.verdict is Verdict.NO_GRADIENT_THROUGH_TIME:
        return [f"{now.place}: no gradient flows through time any more; the horizon was {was}."], []
    if now.horizon is None:
        return [], [f"{now.place}: the horizon was {was}, and is not known now. {now.sentence}"]
    lost = then.horizon - now.horizon
    if lost < HORIZON_VARIES_TIMESTEPS or now.horizon >= then.horizon * (1 - tolerance):
        return [], []
    if now.horizon_censored:
        return [], [
            f"{now.place}: the horizon was {was}; it is at least {now.horizon} of {now.timesteps}, and longer "
            "sequences are needed to tell."
        ]
    return [f"{now.place}: the horizon is {now.horizon} of {count_of(now.timesteps, 'timestep')}; it was {was}."], []


def _limits(run: Run, base: Run) -> tuple[list[str], list[str]]:
    """Where clipping has come to limit the steps, and where it is not known whether it did so
    before.
    """
    before = {entry["optimizer"]: entry["verdict"] for entry in base.clipping}
    limits: list[str] = []
    unknown: list[str] = []
    for entry in run.clipping:
        was = before.get(entry["optimizer"])
        if entry["verdict"] == ClipVerdict.STEP_LIMITER and was not in (None, ClipVerdict.STEP_LIMITER):
            said = f"The clipping of optimizer {entry['optimizer']} limits the steps; it was: {was}. {entry['sentence'] or ''}"
            (unknown if was == ClipVerdict.UNDECIDED else limits).append(said.rstrip())
    return limits, unknown


def _criticals(run: Run, base: Run, allowed: Collection[str]) -> Iterator[str]:
    """The first of each kind and place that the other run does not have."""
    known = {_key(event) for event in base.event_records if event["severity"] == Severity.CRITICAL}
    for event in run.event_records:
        if event["severity"] != Severity.CRITICAL or closes_episode(event) or event["kind"] in allowed:
            continue
        if _key(event) not in known:
            known.add(_key(event))
            yield f"{event['kind']} at step {event['step']} is new. {event['message'] or ''}".rstrip()


def _key(event: dict[str, object]) -> tuple[object, object]:
    return event["kind"], event.get("module")


def _verdicts(common: list[LayerSummary], before: dict[str, LayerSummary]) -> Iterator[str]:
    for layer in common:
        grave = layer.severity == Severity.CRITICAL
        if grave and before[layer.place].severity != Severity.CRITICAL:
            yield f"{layer.line} It was: {before[layer.place].said}."
