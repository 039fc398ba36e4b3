"""What a watch found: kept, written to the run log, and told to the user."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from lightning_gradwatch.audit import ClippingSummary
from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.observation import Observation
from lightning_gradwatch.events import Event, EventKind, Severity, closes_episode
from lightning_gradwatch.findings.announcer import Announcer, Say
from lightning_gradwatch.findings.event_sink import EventSink
from lightning_gradwatch.findings.first_word import FirstWord
from lightning_gradwatch.metrics import LaggedGradient, TotalGradient
from lightning_gradwatch.plain import count_of, plain
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.runlog.folding import counted_once
from lightning_gradwatch.runlog.measures import Record
from lightning_gradwatch.runlog.schema import ProfileRecord, is_primary
from lightning_gradwatch.runlog.summary import is_finite, reach, summarise
from lightning_gradwatch.runlog.verdict import LayerSummary, Verdict
from lightning_gradwatch.runlog.writer import RunLogWriter
from lightning_gradwatch.thresholds import LAST_SAMPLES, SEVERAL

_COMMON = (EventKind.NONFINITE_GRADIENT, EventKind.EXPLODING_GRADIENT, EventKind.AMP_OVERFLOW, EventKind.STEP_SKIPPED)
"""What follows from the gradients of the parameters: where all ranks see
the same ones, rank 0 writes it.
"""

_NOUNS = {Severity.CRITICAL: "critical event", Severity.WARNING: "warning", Severity.INFO: "note"}

_NOTHING = "  Nothing was measured: no recurrent module, cell or tap was found to run."

_ENOUGH = 8
"""Samples for a verdict that stands on more than the fewest."""

Place = tuple[str, int, str]
"""Module, layer, direction."""


class Findings:
    """Of one training. What belongs to the running one (``log``) is let go of when it ends.

    Args:
        keep_sequences: have records keep the total gradient of every measured sequence.
        on_event: the user's callable; an error in it is one warning.
        announcer: says at once what must not wait.

    Attributes:
        lagged, totals: the metrics accumulated over the training, by module, layer and direction.
        steps: how many optimizer steps there were, once the training is over; 0 before.
        clipping: what became of each optimizer's gradients, as far as that is known.
    """

    def __init__(
        self,
        keep_sequences: bool = False,
        on_event: Callable[[Event], None] | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        self.sink = EventSink(on_event)
        self._announcer = announcer or Announcer(None)
        self.lagged: dict[Place, LaggedGradient] = {}
        self.totals: dict[Place, TotalGradient] = {}
        self.steps = 0
        self.clipping: list[ClippingSummary] = []
        self._first_word = FirstWord()
        self._keep_sequences = keep_sequences
        self._recent: dict[tuple[Any, ...], deque[Record]] = {}
        self._others: list[Event] = []
        self._first: dict[tuple[Any, ...], Record] = {}  # its loss is what later ones are held against
        self._furthest: dict[tuple[Any, ...], Record] = {}  # of the samples before the recent ones
        self._shortest: Record | None = None  # horizon of the last sampled step

    @property
    def events(self) -> list[Event]:
        """All events of the training, in order."""
        return self.sink.events

    @property
    def log(self) -> RunLogWriter | None:
        """The run log, while there is one."""
        return self.sink.log

    def take(self, seen: Observation) -> None:
        """What the watch found."""
        try:
            for sample in seen.samples:
                self._take_sample(sample.profiles, sample.step)
        finally:  # a profile that cannot be written costs no event
            for event in seen.events:
                self.take_event(event)

    def _take_sample(self, profiles: list[Profile], step: Step) -> None:
        scalars: dict[str, float] = {}
        records: list[Record] = []
        loss = step.loss_value()
        for profile in profiles:
            record: ProfileRecord = {
                "step": step.moment.step if profile.step is None else profile.step,
                "epoch": step.moment.epoch,
                "batch_idx": step.moment.batch_idx,
                "micro_batch": step.micro_batch,
                "loss": loss,
                **profile.to_record(keep_sequences=self._keep_sequences),
            }
            if self.log is not None:
                self.log.profile(record)
            self._remember(profile, record)
            records.append(record)
            if profile.primary:
                self._accumulate(profile)
                scalars |= _scalars(profile, record)
        self._shortest = _shortest(records)
        self._first_word.hear(records, step.batch)
        self.hand_on(records, scalars, step)

    def hand_on(self, records: list[Record], scalars: dict[str, float], step: Step) -> None:
        """A sampled step, for whoever else takes its records, or its scalars by a logger's keys."""

    @property
    def run_id(self) -> str | None:
        """Of the run log, the same on every process; None without one."""
        return None if self.log is None else self.log.run_id

    def gradients_are_common(self) -> bool:
        """Whether every rank sees the same gradients of the parameters."""
        return False

    def take_event(self, event: Event) -> None:
        """An event, wherever it comes from."""
        common = self.gradients_are_common()
        if common and event.kind == EventKind.NONFINITE_GRADIENT:
            note = "Gradients are averaged over the processes: it may have begun on another one, which says so in its own events."
            event = dataclasses.replace(event, message=f"{event.message} {note}", detail="")
        told = not (common and event.rank and event.kind in _COMMON)
        if told:
            self._announcer.hear(event)
        self._first_word.hear_event(event)
        self.sink.take(event, write=told)

    def say_first_words(self, say: Say, loaded: Callable[[], int | None] = lambda: None) -> None:
        """A line for each module that has been measured for the first time since.

        Args:
            loaded: how many examples the loader puts into a batch, if that is known.
        """
        for line in self._first_word.lines(self.events, loaded):
            say(line)

    def take_clipping(self, summaries: list[ClippingSummary]) -> None:
        """What became of the gradients between backward pass and step, over the training so far."""
        self.clipping = summaries
        if self.log is not None and summaries:
            self.log.meta({"clipping": [one.to_record() for one in summaries]})

    def note_truncation(self) -> None:
        """Write what truncated backpropagation through time throws away, where it was measured."""
        if self.log is not None:
            measured = [layer.truncation() for layer in self.verdicts() if layer.cut_share is not None]
            self.log.meta({"truncation": measured})

    def horizon_text(self) -> str | None:
        """The shortest horizon of the last sampled step, beside the sequence length: ``≥12/12``."""
        if self._shortest is None:
            return None
        cut = "≥" if self._shortest["horizon_censored"] else ""
        return f"{cut}{self._shortest['horizon']}/{self._shortest['timesteps']}"

    def is_critical(self) -> bool:
        """Whether anything critical happened, or the training diverged."""
        return any(event.severity == Severity.CRITICAL or event.kind == EventKind.DIVERGED for event in self.events)

    def summary(self, others: Sequence[Event] = ()) -> list[str]:
        """What was found, in a few lines: per module and layer the verdict; how many
        events, and the first of the gravest.

        Args:
            others: events that other callbacks wrote into the same run log: a verdict rests on them
                too, and they are counted with the others.
        """
        self._others = list(others)
        lines = ["GradWatch: how far the gradient reaches back through time"]
        verdicts = self.verdicts()
        lines += [f"  {plain(layer.line)}" for layer in verdicts] or [_NOTHING]
        lines += [f"  {said}" for said in self._first_word.doubts]
        lines += _more_samples(verdicts, self.steps)
        lines += [f"  {plain(one.line(several=len(self.clipping) > 1))}" for one in self.clipping if one.steps]
        return [*lines, f"  {plain(_told([event for event in self._all_events() if not closes_episode(event)]))}"]

    def verdicts(self) -> list[LayerSummary]:
        """On each module, layer and direction."""
        kept = [
            *self._first.values(),
            *self._furthest.values(),
            *(record for recent in self._recent.values() for record in recent),
        ]
        records = list({id(record): record for record in kept}.values())
        return summarise(records, self._all_events())

    def _all_events(self) -> list[dict[str, Any]]:
        """Records of all that the run log holds, in the order of their steps."""
        events = [event.to_record() for event in (*self.events, *self._others)]
        return sorted(events, key=lambda event: event["step"])

    def _remember(self, profile: Profile, record: Record) -> None:
        key = (profile.module, profile.layer, profile.direction, profile.state, profile.call)
        self._first.setdefault(key, record)
        recent = self._recent.setdefault(key, deque())
        if len(recent) > 1 and not any(map(is_finite, (record, recent[-1], recent[-2]))):
            recent.pop()  # of a run that is lost the first sample matters, and the last
        recent.append(record)
        if len(recent) > LAST_SAMPLES:
            aged = recent.popleft()
            if reach(aged) > reach(self._furthest.get(key)):
                self._furthest[key] = aged

    def _accumulate(self, profile: Profile) -> None:
        key = (profile.module, profile.layer, profile.direction)
        if key not in self.lagged:
            self.lagged[key], self.totals[key] = LaggedGradient(), TotalGradient()
        self.lagged[key].update(torch.from_numpy(profile.lagged()))
        median, largest = profile.total_median(), profile.total_max()
        self.totals[key].update(torch.from_numpy(median), torch.from_numpy(largest))


def _more_samples(verdicts: Sequence[LayerSummary], steps: int) -> list[str]:
    """How a run that was too short for its samples gets a verdict: nothing where it has one."""
    most = max((layer.samples for layer in verdicts), default=0)
    undecided = any(layer.verdict is Verdict.UNDECIDED for layer in verdicts)
    every = max(1, steps // _ENOUGH)
    taken = math.ceil(steps / every)
    if not undecided or not 0 < most < SEVERAL <= taken:
        return []
    return [f"  For a verdict after so few steps sample more often: every_n_steps={every} takes {taken} in {steps}."]


def _told(events: Sequence[Mapping[str, Any]]) -> str:
    """How many events there are of each severity, and what the first of the gravest says."""
    each = counted_once(events)
    of = {severity: [event for event in each if event["severity"] == severity] for severity in reversed(Severity)}
    counts = {severity: count_of(len(alike), _NOUNS[severity]) for severity, alike in of.items() if alike}
    if not counts:
        return "No events."
    gravest = next(iter(counts))
    if gravest == Severity.INFO:
        return f"{counts[gravest]}."
    first = min(of[gravest], key=_first_to_name)
    said = first["message"] if gravest == Severity.CRITICAL else first["message"].partition(". ")[0]
    said = said.rstrip(".")
    besides = " and ".join(count for severity, count in counts.items() if severity != gravest)
    return (
        f"{counts[gravest]}, the first at step {first['step']}: {first['kind']}, {_within(said)}."
        f"{f' Besides {besides}.' if besides else ''}"
    )


def _within(sentence: str) -> str:
    """A sentence as a part of another: it begins small, unless with a name as ``AdaptiveClip``."""
    first = sentence.partition(" ")[0]
    return sentence if first[1:].lower() != first[1:] else sentence[:1].lower() + sentence[1:]


def _first_to_name(event: Mapping[str, Any]) -> tuple[int, bool]:
    """The earliest; of several of one step a divergence, of which the others are parts."""
    return event["step"], event["kind"] != EventKind.DIVERGED


def _shortest(records: Sequence[Record]) -> Record | None:
    """The record of the shortest horizon; one that the sequence cut off is longer than any, and
    nothing is known where it did so at once.
    """
    measured = [record for record in records if is_primary(record) and record["horizon"] is not None]
    known = [record for record in measured if record["horizon"] or not record["horizon_censored"]]
    return min(known, key=lambda record: (record["horizon_censored"], record["horizon"]), default=None)


def _scalars(profile: Profile, record: Mapping[str, Any]) -> dict[str, float]:
    prefix = f"gradwatch/{profile.module}/l{profile.layer}" + ("r" if profile.direction == "reverse" else "")
    total: Sequence[float] = record["total"]
    values: Iterable[tuple[str, float | None]] = (
        ("horizon", record["horizon"]),
        ("growth_rate", record["growth_rate"]),
        ("total_first", total[0] if total else None),
        ("total_last", total[-1] if total else None),
        ("total_max", float(profile.total_max().max(initial=0.0))),
    )
    return {f"{prefix}/{name}": float(value) for name, value in values if value is not None}
