"""What clipping says of the steps that it took: each step, the begin of an
episode of clipping, and a habit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_gradwatch.clip import Spike
from lightning_gradwatch.clip.step.groups import PolicyGroup
from lightning_gradwatch.clip.step.measure_and_clip import UNTOUCHED, Outcome, headline_of
from lightning_gradwatch.clip.step.state import ClipCounts, OptimizerState
from lightning_gradwatch.events import EventKind, Severity
from lightning_gradwatch.findings.clip_record import ClipRecord, clipped

_MOST_EPISODES = 100
"""Episodes of one policy that are told; one that clips by habit would flood the log."""

_HABIT_SHARE, _HABIT_STEPS = 0.8, 50
"""A share of so many steps or more that is clipped is a habit."""


class ClipEvents:
    """Counts and tells the steps of one training."""

    def __init__(self) -> None:
        self._habits: set[tuple[int, str]] = set()

    def taken(
        self,
        record: ClipRecord,
        index: int,
        groups: Sequence[PolicyGroup],
        outcomes: Sequence[Outcome],
        state: OptimizerState,
    ) -> None:
        """A step was taken, clipped or not.

        Args:
            index: which of the optimizers it is; ``state`` is its own.
            groups: those with gradients, and ``outcomes`` what became of each.
        """
        for group, outcome in zip(groups, outcomes, strict=True):
            begins = group.state.count(outcome.decision)
            if begins and group.state.episodes <= _MOST_EPISODES:
                self._tell_episode(record, index, group, outcome)
            self._tell_habit(record, index, group, outcome)
            if group.state is not state.rest:
                record.group(index, group.key, outcome, group.state)
        headline = headline_of(groups, outcomes, state)
        if groups[0].state is not state.rest:
            state.rest.count(headline.decision)
        record.step(index, headline, state.rest)

    def overflow(self, record: ClipRecord, index: int, norm: float, scale: float, state: OptimizerState) -> None:
        """The gradient scaler will skip the step, and looks for a smaller scale."""
        record.event(EventKind.AMP_OVERFLOW, index, value=scale, action="skipped by the scaler")
        record.step(index, Outcome(norm, UNTOUCHED, norm), state.rest, skipped=True)

    def _tell_episode(self, record: ClipRecord, index: int, group: PolicyGroup, outcome: Outcome) -> None:
        threshold, details = outcome.decision.threshold, list[str]()
        if group.pattern:
            details.append(f"It is that of {group.pattern}.")
        if outcome.decision.reason:
            details.append(outcome.decision.reason)
        if threshold is not None and not math.isclose(threshold, outcome.clipped_norm, rel_tol=1e-3):
            bound = f"An ordinary step stays under {threshold:.4g}."
            alone = "follows from this step alone: the parameters' size and the loss"
            first = f"It is the first step: {threshold:.4g} is a bound that {alone}."
            details.append(first if group.state.steps == 1 else bound)
        if group.state.episodes == _MOST_EPISODES:
            details.append("Further ones are counted in gradwatch/clip_rate only.")
        clipped(record, index, outcome, detail=" ".join(details))

    def _tell_habit(self, record: ClipRecord, index: int, group: PolicyGroup, outcome: Outcome) -> None:
        """Say once that a policy made to clip explosions alone clips nearly every step: then
        it sets the length of the steps.
        """
        state, key = group.state, (index, group.pattern)
        often = state.steps >= _HABIT_STEPS and state.clip_rate >= _HABIT_SHARE
        if key in self._habits or not often or not outcome.decision.clipped or not isinstance(state.policy, Spike):
            return
        self._habits.add(key)
        message = (
            f"{record.tools.clipper} has clipped {state.clipped} of {state.steps} gradients: clipping has become the rule, and the "
            "run does not come to rest between explosions."
        )
        fixed = record.tools.clip(f"policy=Norm({outcome.clipped_norm:.2g})")
        remedy = (
            "Lower the learning rate, by ten times at first. Else clip to a fixed norm: "
            f"{fixed} brings every step down to what this one was brought to."
        )
        record.say(f"{message} {remedy}")
        clipped(record, index, outcome, severity=Severity.WARNING, message=message, remedy=remedy)


def closing_line(owner: str, counts: Iterable[ClipCounts], run_dir: Path | None) -> str | None:
    """What was done in a whole training; None if nothing was.

    Args:
        owner: who did it; ``counts``: of each optimizer.
        run_dir: the run log's folder.
    """
    each = list(counts)
    clipped, skipped, steps = (sum(one[field] for one in each) for field in range(3))
    if not (clipped or skipped):
        return None
    where = f" Run log: {run_dir}" if run_dir else ""
    what = "gradient evaluations" if any(one.evaluations for one in each) else "steps"
    return f"{owner}: {clipped:,} of {steps:,} {what} clipped, {skipped:,} skipped.{where}"
