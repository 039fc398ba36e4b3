"""Where clipping says what it did with the step at hand, and how it acts on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.clip.step.measure_and_clip import Outcome
from lightning_gradwatch.clip.step.state import ClipState
from lightning_gradwatch.events import EventKind
from lightning_gradwatch.runlog.schema import StepRecord
from lightning_gradwatch.tools import Tools


class ClipRecord(Protocol):
    """Of one optimizer step. ``index``: which of the training's optimizers it is."""

    def take_loss(self, loss: float | None) -> None:
        """That of the step at hand, before anything else is said of it."""
        ...

    def step(self, index: int, outcome: Outcome, state: ClipState, *, skipped: bool = False) -> None:
        """What became of it."""
        ...

    def group(self, index: int, key: str, outcome: Outcome, state: ClipState) -> None:
        """What became of the parameters that a pattern names."""
        ...

    def event(self, kind: EventKind, index: int, *, detail: str = "", **fields: Any) -> None:
        """Make an event, and hand it to whoever wants it."""
        ...

    def warn_once(self, key: str, message: str) -> None:
        """Warn, once a training for each key."""
        ...

    def say(self, text: str) -> None:
        """Say at once what must not wait."""
        ...

    def where(self) -> str:
        """When it is, in words."""
        ...

    @property
    def number(self) -> int:
        """Optimizer steps done before it."""
        ...

    @property
    def tools(self) -> Tools:
        """What the user has at hand, by name."""
        ...

    def skip(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        """Have the step change nothing."""
        ...

    def stop(self, reason: str) -> None:
        """End the training with it."""
        ...


def clipped(record: ClipRecord, index: int, outcome: Outcome, **fields: Any) -> None:
    """Make the event of a clipped step."""
    norms = {"value": outcome.norm, "threshold": outcome.clipped_norm}
    record.event(EventKind.GRADIENT_CLIPPED, index, action="clipped", **norms, **fields)


def step_record(step: int, index: int, outcome: Outcome, loss: float | None, *, skipped: bool) -> StepRecord:
    """Of one optimizer step, for the run log.

    Args:
        step: optimizer steps done before it.
    """
    return StepRecord(
        step=step,
        optimizer=index,
        grad_norm=outcome.norm,
        clip_threshold=outcome.decision.threshold,
        clip_coefficient=outcome.decision.coefficient,
        clipped_norm=outcome.clipped_norm,
        loss=loss,
        skipped=skipped,
    )


def values_of(outcome: Outcome, state: ClipState) -> dict[str, float | None]:
    """By the last part of a logger's key."""
    return {
        "grad_norm": outcome.norm,
        "clip_threshold": outcome.decision.threshold,
        "clip_coefficient": outcome.decision.coefficient,
        "clipped_norm": outcome.clipped_norm,
        "clipped_share": outcome.decision.share,
        "clip_rate": state.clip_rate,
    }
