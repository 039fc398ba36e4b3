"""What a verdict rests on: the profiles and events of one layer and direction, brought together."""

# Over 300 lines: all figures of one layer that a verdict may rest on, each from the same records.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from lightning_gradwatch.events import ENDED, EventKind
from lightning_gradwatch.runlog.measures import (
    Record,
    due,
    due_timesteps,
    is_finite,
    median_horizon,
    middle,
    real_timesteps,
    recent_steps,
    starves,
)
from lightning_gradwatch.runlog.schema import is_primary
from lightning_gradwatch.thresholds import (
    HORIZON_VARIES_FACTOR,
    HORIZON_VARIES_TIMESTEPS,
    LAST_SAMPLES,
    LOW_LOSS,
)

_PLACE = ("module", "layer", "direction")


@dataclass(frozen=True)
class Spread:
    """Horizons between ``shortest`` and ``longest`` timesteps in so many samples; ``cut``: at how
    many timesteps the sequence cut one off, which may be fewer than another one had; None where it
    cut none off.
    """

    shortest: int
    longest: int
    cut: int | None
    samples: int

    def __str__(self) -> str:
        if self.cut is None:
            return f"{self.shortest} to {self.longest}"
        return f"{self.shortest} to {f'over {self.cut}' if self.cut >= self.longest else f'{self.longest} or more'}"


@dataclass(frozen=True)
class Evidence:
    """Of one layer and direction of one module.

    Args:
        records: its profiles, in the order in which they were made.
        here: the events that name this place, or its module as a whole; closing
            records of episodes are left out.
        everywhere: all events of the run, those of other modules and of none included.
    """

    records: Sequence[Record]
    here: Sequence[Record]
    everywhere: Sequence[Record]

    @cached_property
    def chosen(self) -> list[Record]:
        """The profiles of the leading state, or of what else was recorded where there are none."""
        return list(filter(is_primary, self.records)) or list(self.records)

    @cached_property
    def steps(self) -> list[int]:
        """The sampled steps."""
        return sorted({record["step"] for record in self.chosen})

    @cached_property
    def spoilt(self) -> set[int]:
        """Sampled steps with a gradient that is not finite."""
        return {record["step"] for record in self.chosen if not is_finite(record)}

    @cached_property
    def sound(self) -> list[int]:
        """Sampled steps whose gradients are all finite."""
        return [step for step in self.steps if step not in self.spoilt]

    @cached_property
    def lost(self) -> list[int]:
        """Sampled steps that are not finite and are followed by no finite one. A single one
        that was skipped spoilt nothing.
        """
        skipped = {event["step"] for event in self.everywhere if event["kind"] == EventKind.STEP_SKIPPED}
        tail = [step for step in self.steps if step in self.spoilt and step > max(self.sound, default=-1)]
        return [] if len(tail) == 1 and tail[0] in skipped else tail

    @cached_property
    def first_trouble(self) -> Record | None:
        """The first event that names something not finite, at or after the last finite sample."""
        since = max(self.sound, default=0)
        return min((event for event in self.trouble if event["step"] >= since), key=lambda e: e["step"], default=None)

    @property
    def lost_since(self) -> int | None:
        """The step from which on nothing is known to be finite; None where that is not so."""
        if not self.lost:
            return None
        return min(self.lost[0], self.first_trouble["step"]) if self.first_trouble else self.lost[0]

    @cached_property
    def last(self) -> list[Record]:
        """The profiles of the last samples, on which the verdict rests."""
        recent = recent_steps(self.sound or self.steps)
        return [record for record in self.chosen if record["step"] in recent]

    @cached_property
    def before(self) -> list[Record]:
        """The profiles of the samples before those."""
        first = min(record["step"] for record in self.last)
        return [record for record in self.chosen if record["step"] < first]

    @property
    def samples(self) -> int:
        """How many steps were sampled."""
        return len(self.steps)

    @cached_property
    def timesteps(self) -> int:
        """Of the longest sequence among the last samples."""
        return max(record["timesteps"] for record in self.last)

    @cached_property
    def typical(self) -> Record:
        """The profile whose length the horizon is held against: the middle one of those in which
        the gradient fell under 1 %, where some are; how long the longest one was may be chance.
        """
        fell = [record for record in self.last if record.get("horizon") is not None and not record["horizon_censored"]]
        ordered = sorted(fell, key=real_timesteps)
        return ordered[(len(ordered) - 1) // 2] if fell and not self.censored else max(self.last, key=real_timesteps)

    @property
    def real_timesteps(self) -> int:
        """Its timesteps, without padding that the loss does not ask the gradient to cross."""
        return real_timesteps(self.typical)

    @property
    def due_timesteps(self) -> int:
        """Those at or before the last one that the loss reaches."""
        return due_timesteps(self.typical)

    @cached_property
    def lengths(self) -> tuple[int, int] | None:
        """The fewest and the most timesteps of the last samples; None where they hardly differ."""
        fewest = min(record["timesteps"] for record in self.last)
        return (fewest, self.timesteps) if self.timesteps >= HORIZON_VARIES_FACTOR * fewest else None

    @cached_property
    def padded(self) -> int:
        """Timesteps of equal inputs, as padding has, that the gradient has to cross
        first; median over the last samples.
        """
        return int(median(record.get("padded") or 0 for record in self.last))

    @cached_property
    def gate_share(self) -> float | None:
        """Of the gradient that the loss sends, how much reaches the
        gates; median over the last samples.
        """
        shares = [share for record in self.last if (share := record.get("gate_gradient")) is not None]
        return median(shares) if shares else None

    @cached_property
    def last_losses(self) -> list[float]:
        """Those of the last samples that are known."""
        return [loss for record in self.last if (loss := record.get("loss")) is not None]

    @cached_property
    def losses(self) -> tuple[float, float] | None:
        """The first loss, and the median of the last samples'; None where they are not known."""
        known = [loss for record in self.records if (loss := record.get("loss")) is not None]
        return (known[0], median(self.last_losses)) if self.last_losses else None

    @property
    def low(self) -> bool:
        """Whether the loss is low by now: what the task needs is learned."""
        return self.losses is not None and 0 <= self.losses[1] < LOW_LOSS * self.losses[0] < math.inf

    def ongoing(self, kind: EventKind) -> Record | None:
        """The event of an episode of this kind that began here and did not end while training
        went on; None if there is none.
        """
        begun = next((event for event in reversed(self.here) if event["kind"] == kind), None)
        if begun is None:
            return None
        place = [begun.get(name) for name in _PLACE]
        ended = any(
            event["kind"] == kind
            and event.get("action") == ENDED
            and event["step"] >= begun["step"]
            and [event.get(name) for name in _PLACE] == place
            for event in self.everywhere
        )
        return None if ended else begun

    @cached_property
    def _horizon(self) -> tuple[int | None, bool]:
        return (None, False) if self.lost else median_horizon(self.last)

    @property
    def horizon(self) -> int | None:
        """Timesteps, median over the last samples."""
        return self._horizon[0]

    @property
    def censored(self) -> bool:
        """Whether the gradient was still above 1 % at the longest lag seen."""
        return self._horizon[1]

    @cached_property
    def spread(self) -> Spread | None:
        """From where to where the horizon moved in the last samples; None where
        it hardly did, or there is none.
        """
        steps = sorted({record["step"] for record in self.last})
        each = [median_horizon([record for record in self.last if record["step"] == step]) for step in steps]
        full = [horizon for horizon, censored in each if horizon is not None and not censored]
        cut = max((horizon for horizon, censored in each if horizon is not None and censored), default=None)
        if self.horizon is None or not full:
            return None
        shortest, longest = min(full), max(*full, cut or 0)
        much = longest >= HORIZON_VARIES_FACTOR * max(shortest, 1) and longest - shortest >= HORIZON_VARIES_TIMESTEPS
        return Spread(shortest, longest, cut, len(steps)) if much else None

    @cached_property
    def rate(self) -> float | None:
        """Nats per timestep, median over the last samples."""
        rates = [
            rate for record in self.last if (rate := record.get("growth_rate")) is not None and math.isfinite(rate)
        ]
        return median(rates) if rates and not self.lost else None

    @cached_property
    def handed_over(self) -> bool:
        """Whether in one of the last samples the state came in as a leaf whose gradient
        somebody may hand back by hand.
        """
        return any(record.get("past") == "handed over" for record in self.last)

    @cached_property
    def left_out(self) -> bool:
        """Whether calls between which the state goes on were measured each by itself."""
        return any(record.get("past") == "left out" for record in self.last)

    @cached_property
    def truncated(self) -> bool:
        """Whether in most of the last samples' sequences the state
        came in cut off from its past.
        """
        return 2 * sum(record.get("past") in ("cut off", "handed over") for record in self.last) > len(self.last)

    @cached_property
    def cut_share(self) -> float | None:
        """Of the gradient over a window and the one before, what lies before the cut between them;
        median over the last samples; None where it was not measured.
        """
        shares = [share for record in self.last if (share := record.get("cut_share")) is not None]
        return median(shares) if shares else None

    @cached_property
    def cut_unknown(self) -> str | None:
        """Why that cannot be measured, by the last sample."""
        return self.last[-1].get("cut_unknown") if self.last else None

    @cached_property
    def exact(self) -> bool:
        """Whether all of the last samples are."""
        return all(record.get("exact") is not False for record in self.last)

    @cached_property
    def starves(self) -> bool:
        """Whether in most of the last samples the far end of the sequence gets next to nothing."""
        return 2 * sum(map(starves, self.last)) > len(self.last)

    @cached_property
    def dues(self) -> list[tuple[int, int]]:
        """``(reached, timesteps)`` of the last ten samples, also those that lie in the begin of a
        short run: up to which timestep, in the direction's own order, the loss sends a gradient, of
        how many. A training may draw the timesteps that it reads.
        """
        lately = set((self.sound or self.steps)[-LAST_SAMPLES:])
        pairs = [due(record) for record in self.chosen if record["step"] in lately]
        return [(reached, timesteps) for reached, timesteps in pairs if reached]

    @cached_property
    def with_gradient(self) -> tuple[int, int] | None:
        """``(sequences that the loss reaches, sequences of a batch)``, medians over the last
        samples; None where it is not known.
        """
        known = [
            (record["with_gradient"], record["batch_size"])
            for record in self.last
            if record.get("with_gradient") and record.get("batch_size")
        ]
        return (middle([some for some, _ in known]), middle([batch for _, batch in known])) if known else None

    @cached_property
    def unfollowed(self) -> str | None:
        """Why there are no lagged gradients, where a profile of the last samples says so."""
        missing = [record.get("inexact_reason") for record in reversed(self.last) if not record.get("lagged")]
        return next((reason.rstrip(".") for reason in missing if reason), None)

    @property
    def fused(self) -> bool:
        """Whether the module takes whole sequences, in an order of axes that is known."""
        return self.last[-1].get("batch_first") is not None

    @property
    def time_first(self) -> bool:
        """Whether the module takes its input as (time, batch, …)."""
        return self.last[-1].get("batch_first") is False

    @property
    def trouble(self) -> list[Record]:
        """The events of the run that name something not finite."""
        return [event for event in self.everywhere if event["kind"].startswith("NONFINITE")]

    def message(self, *kinds: EventKind) -> str:
        """What the last event of these kinds says of this place; nothing where there is none."""
        return next((event.get("message") or "" for event in reversed(self.here) if event["kind"] in kinds), "")
