"""The step at hand, as a Trainer has it: where AdaptiveClip says what it did, and acts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.callbacks.anomaly.step_control import skip_step, stop_training
from lightning_gradwatch.callbacks.output.clip_recorder import ClipRecorder
from lightning_gradwatch.clip.step.measure_and_clip import Outcome
from lightning_gradwatch.clip.step.state import ClipState
from lightning_gradwatch.events import EventKind
from lightning_gradwatch.tools import Tools, tools_at_hand
from lightning_gradwatch.trainer.compat import Trainer, say


@dataclass(frozen=True, slots=True)
class TrainerStep:
    """A ``ClipRecord``.

    Args:
        recorder: of the fit; ``trainer``: whose it is.
    """

    recorder: ClipRecorder
    trainer: Trainer

    def take_loss(self, loss: float | None) -> None:
        """That of the step at hand."""
        self.recorder.loss = loss

    def step(self, index: int, outcome: Outcome, state: ClipState, *, skipped: bool = False) -> None:
        """What became of it."""
        self.recorder.step(self.trainer, index, outcome, state, skipped=skipped)

    def group(self, index: int, key: str, outcome: Outcome, state: ClipState) -> None:
        """What became of the parameters that a pattern names."""
        self.recorder.group(self.trainer, index, key, outcome, state)

    def event(self, kind: EventKind, index: int, *, detail: str = "", **fields: Any) -> None:
        """Make an event, and hand it to whoever wants it."""
        self.recorder.event(self.trainer, kind, index, detail=detail, **fields)

    def warn_once(self, key: str, message: str) -> None:
        """Warn, once a fit for each key."""
        self.recorder.warn_once(key, message)

    def say(self, text: str) -> None:
        """Say at once what must not wait."""
        say(text, urgent=True)

    def where(self) -> str:
        """When it is, in words."""
        trainer, batch = self.trainer, self.recorder.batch_idx
        return f"optimizer step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch})"

    @property
    def number(self) -> int:
        """Optimizer steps done before it."""
        return self.trainer.global_step

    @property
    def tools(self) -> Tools:
        """The callbacks."""
        return tools_at_hand(in_loop=False)

    def skip(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        """Have the step change nothing."""
        skip_step(self.trainer, optimizer, parameters)

    def stop(self, reason: str) -> None:
        """End the training with it."""
        stop_training(self.trainer)
