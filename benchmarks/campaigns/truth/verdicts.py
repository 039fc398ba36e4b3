"""Judges of the closing lines, and of what is said of a gradient on its way back through time."""

from __future__ import annotations

import math
import re
from statistics import mean

from benchmarks.campaigns.truth.oracle import Facts
from benchmarks.campaigns.truth.sentences import SAID, Context, place_of
from lightning_gradwatch.events import Event, EventKind, closes_episode

FEW = 0.25
"""Of a direction's timesteps. Fewer are few."""

GROWN = 100.0
"""Growth over this is an explosion, a fall under its inverse the end of the horizon."""

RISEN = 10.0
"""A loss so many times as large as any of the first ones is no healthy run's."""

Words = dict[str, str]


def of_late(c: Context) -> list[Facts]:
    """What is true at the samples of the last half of the run, and at its last three."""
    steps = c.steps()
    late = [step for step in steps if step >= c.truth.steps / 2]
    return c.facts(steps=late if len(late) >= 3 else steps[-3:])


def _risen(c: Context) -> float:
    first, last = c.truth.losses[:3], c.truth.losses[-3:]
    return mean(last) / max(map(abs, first)) if all(map(math.isfinite, first + last)) and any(first) else math.nan


def _healthy(c: Context, m: Words) -> None:
    c.verdict(c.case.cause not in ("saturation", "dead relu", "severed"), f"it suffers from {c.case.cause}")
    skipped = {event.step for event in c.told.events if event.kind == EventKind.STEP_SKIPPED}
    taken = [loss for step, loss in enumerate(c.truth.losses) if step not in skipped]
    c.verdict(not taken or math.isfinite(taken[-1]), "the loss is not finite")
    c.verdict(c.case.cause == "outlier" or not _risen(c) > RISEN, f"the loss rose {_risen(c):.3g}-fold")
    late = of_late(c)
    for why, holds in (
        ("the horizon is short", lambda one: one.horizon[1] >= 0.5 * _due(one)),
        ("it grows more than 100-fold", lambda one: one.growth[0] <= GROWN),
        ("few timesteps get a gradient", lambda one: _is_reached(c, one)),
        ("no gradient reaches it", lambda one: bool(one.fed)),
    ):
        c.verdict(2 * sum(not holds(one) for one in late) <= len(late), why)


def _is_reached(c: Context, one: Facts) -> bool:
    """Whether more than few timesteps get a gradient, of those that are due one."""
    return c.case.cause == "padding, rightly read" or one.reached[1] > FEW * one.timesteps or one.timesteps <= 2


def _due(one: Facts) -> int:
    """The timesteps at or before the last one that the loss reaches."""
    return one.reached[0] or one.timesteps


def _vanishing(c: Context, m: Words) -> None:
    late = of_late(c)
    c.verdict(not late or any(one.horizon[0] < 0.5 * _due(one) for one in late), "the horizon is long")
    c.verdict(c.case.cause not in ("severed", "short reach"), f"it is {c.case.cause}")


def _exploding(c: Context, m: Words) -> None:
    late = of_late(c)
    c.verdict(not late or any(one.growth[1] > GROWN for one in late), "it does not grow so")


def _not_finite(c: Context, m: Words) -> None:
    c.verdict(not all(is_finite(c, step) for step in range(c.truth.steps)), "everything is finite")


def barely(c: Context, m: Words) -> None:
    late = of_late(c)
    few = any(one.reached[0] <= max(1, FEW * one.timesteps) for one in late)
    c.verdict(not late or few or c.case.cause == "few sequences", "more than few are reached")


def saturated(c: Context, m: Words) -> None:
    """Little gradient reaches the weights."""
    late = of_late(c)
    c.verdict(not late or any(one.gates is not None and one.gates < 0.12 for one in late), "gradient reaches the gates")
    c.verdict(c.case.cause in ("saturation", "dead relu", "divergence", "outlier"), "nothing is saturated")


def _diverged(c: Context, m: Words) -> None:
    c.verdict(c.case.cause in ("divergence", "outlier") and _peak(c) > 3, f"the loss rose {_peak(c):.3g}-fold at most")


def _peak(c: Context) -> float:
    losses = [abs(loss) for loss in c.truth.losses if math.isfinite(loss)]
    return max(losses) / max(losses[0], 1e-30)


def _severed(c: Context, m: Words) -> None:
    late = of_late(c)
    c.verdict(all(one.severed or one.timesteps == 1 for one in late), "something flows")


def _unseen(c: Context, m: Words) -> None:
    late = of_late(c)
    seen = any(one.fed and one.timesteps > 1 for one in late)
    c.verdict(c.case.cause == "unmeasured" or not seen, "it gets a gradient over more than one timestep")


def _undecided(c: Context, m: Words) -> None:
    """True of anything, if its reason is."""


_VERDICTS = {
    "healthy": _healthy,
    "vanishing": _vanishing,
    "shortened": _vanishing,
    "exploding": _exploding,
    "not finite": _not_finite,
    "undecided": _undecided,
    "not observed": _unseen,
    "barely reached": barely,
    "saturated": saturated,
    "diverged": _diverged,
    "nothing flows through time": _severed,
}


@SAID("<place:place> (<name>): <verdict:verdict>.", "<place:place>: <verdict:verdict>.")
def _line(c: Context, m: Words) -> None:
    c.place = place_of(m["place"])
    verdict, _, still = m["verdict"].partition(", but nothing changes its weights")
    if verdict != m["verdict"]:
        module = c.place[0] if c.place else ""
        c.verdict(not still and not c.truth.moved(module), "its weights changed")
    c.line, _, since = verdict.partition(" since step ")
    c.since = int(since.replace(",", "")) if since else None
    reserved = c.line.startswith("healthy ") or c.line.startswith("healthy,")
    if "now" in c.line.partition(",")[0]:
        c.verdict(any(_is_grave(event) for event in c.told.events), "it was so all along, as far as was told")
    c.line = "healthy" if reserved else c.line
    _VERDICTS[c.line](c, m)
    if c.line == "diverged":  # what follows are the event's own words
        c.event = next((e for e in reversed(c.told.events) if e.kind == EventKind.DIVERGED and not e.action), None)


def _is_grave(event: Event) -> bool:
    return event.severity != "info" and not closes_episode(event.to_record())


@SAID("Not all along: <any:told>.")
def _not_all_along(c: Context, m: Words) -> None:
    """Every step that is named is one at which something grave was told, or by which it was over."""
    for step in map(int, re.findall(r"(?:step|steps|and) (\d+)", m["told"])):
        c.verdict(any(event.step == step for event in c.told.events), f"nothing was told of step {step}")
    c.verdict(any(_is_grave(event) for event in c.told.events), "nothing grave was told")


@SAID("The loss has risen, to <n:last> from <n:first>.")
def _loss_has_risen(c: Context, m: Words) -> None:
    losses = [loss for loss in c.truth.losses if math.isfinite(loss)]
    c.number(m["first"], min(losses), max(losses), "the loss", slack=0.01)
    c.number(m["last"], min(losses), max(losses), "the loss", slack=0.01)
    c.verdict(float(m["last"]) > 2 * float(m["first"]), "it has not")


@SAID(
    "GradWatch, step <int:step>: <place:place> (<name>«; the least far-reaching of <int:of>»«; the first to look at of <int:among>»)."
)
def _first_word(c: Context, m: Words) -> None:
    c.place, step = place_of(m["place"]), int(m["step"].replace(",", ""))
    c.verdict(step in c.told.sampled, "that step was not sampled")
    c.event = Event(EventKind.NOT_OBSERVED, step)  # what follows is said of that step alone


@SAID("No sample from then on is finite.", "It was the last sample.")
def _lost(c: Context, m: Words) -> None:
    later = [step for step in c.told.sampled if c.since is not None and step >= c.since]
    c.verdict(bool(later) and not any(is_finite(c, step) for step in later), "some sample is finite")
    c.verdict("last" not in c.sentence or len(later) == 1, f"there were {len(later)}")


def is_finite(c: Context, step: int) -> bool:
    """Whether loss and gradients were, those of the states too: a unit that is at rest keeps a NaN from every parameter."""
    return c.truth.finite(step) and all(
        math.isfinite(norm) for one in c.facts(steps=[step]) for row in one.total for norm in row
    )


@SAID("GradWatch, step <int:step>: <kind:kind>.")
def _at_once(c: Context, m: Words) -> None:
    _of_event(c, m)
    c.verdict(c.event is not None, "there is no such event")


@SAID("GradWatch, step <int:step>: <name:module>.")
def _severed_at_once(c: Context, m: Words) -> None:
    """What follows is the message of an event that says all there is of that module."""
    step = int(m["step"].replace(",", ""))
    own = [e for e in c.told.events if e.module == m["module"] and e.step == step]
    c.event = next((e for e in own if e.kind == EventKind.NO_GRADIENT_THROUGH_TIME), None)
    c.verdict(c.event is not None, "there is no such event")


def _of_event(c: Context, m: Words) -> None:
    """What follows is said of an event."""
    step = int(m["step"].replace(",", ""))
    c.event = next((e for e in c.told.events if e.kind == m["kind"] and e.step == step), None)
    if c.event is not None and c.event.module is not None:
        c.place = (c.event.module, c.event.layer or 0, c.event.direction or "forward")


@SAID("GradWatch: how far the gradient reaches back through time", "gradwatch <name> <path>")
def _plain(c: Context, m: Words) -> None:
    """Says nothing of the network."""


@SAID("No events.")
def _no_events(c: Context, m: Words) -> None:
    c.verdict(not _counted(c), f"there are {len(_counted(c))}")


def _counted(c: Context) -> list[str]:
    """The severity of each event; steps in a row that were clipped or skipped alike are one."""
    own = [e for e in c.told.events if not closes_episode(e.to_record())]
    acts = {(e.kind, e.severity, e.action, e.step) for e in own if e.kind in ("STEP_SKIPPED", "GRADIENT_CLIPPED")}
    begun = [act for act in acts if (*act[:-1], act[-1] - 1) not in acts]
    others = [e for e in own if e.kind not in ("STEP_SKIPPED", "GRADIENT_CLIPPED")]
    return [str(e.severity) for e in others] + [str(severity) for _, severity, *_ in begun]


_NOUNS = {"critical event": "critical", "warning": "warning", "note": "info"}


def _count(c: Context, number: str, noun: str) -> None:
    true = _counted(c).count(_NOUNS[noun.removesuffix("s")])
    c.number(number, true, true, f"the number of {noun}")


@SAID("<int:n> <any:noun>, the first at step <int:step>: <kind:kind>, <any:said>.")
def _told(c: Context, m: Words) -> None:
    _count(c, m["n"], m["noun"])
    _quoted(c, m)


@SAID("<int:n> notes.", "<int:n> note.", "Besides <int:n> note.", "Besides <int:n> notes.")
def _notes(c: Context, m: Words) -> None:
    _count(c, m["n"], "note")


@SAID("Besides <int:n> warning.", "Besides <int:n> warnings.")
def _warnings(c: Context, m: Words) -> None:
    _count(c, m["n"], "warning")


@SAID("Besides <int:n> warning«s» and <int:notes> note«s».")
def _both(c: Context, m: Words) -> None:
    _count(c, m["n"], "warning")
    _count(c, m["notes"], "note")


@SAID("First came <kind:kind> at step <int:step>: <any:said>.")
def _quoted(c: Context, m: Words) -> None:
    same = [e for e in c.told.events if e.kind == m["kind"] and e.step == int(m["step"].replace(",", ""))]
    c.verdict(any(e.message.lower().startswith(m["said"].lower()) for e in same), "no event says so")
    _of_event(c, m)
