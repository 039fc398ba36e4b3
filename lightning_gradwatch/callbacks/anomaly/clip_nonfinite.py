"""What AdaptiveClip does with a step whose gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from lightning_gradwatch.callbacks.anomaly.step_control import skip_step, stop_training
from lightning_gradwatch.callbacks.output.clip_recorder import ClipRecorder
from lightning_gradwatch.clip import Decision
from lightning_gradwatch.clip.norms import true_norm
from lightning_gradwatch.clip.step.groups import PolicyGroup
from lightning_gradwatch.clip.step.nonfinite import HUGE, RECURRENT, SHRINK, NonFiniteGradientError, shrink_recurrent_
from lightning_gradwatch.clip.step.state import OptimizerState
from lightning_gradwatch.clip.step.step import UNTOUCHED, Outcome
from lightning_gradwatch.events import EventKind, Severity
from lightning_gradwatch.trainer.compat import LightningModule, Trainer


@dataclass(frozen=True)
class NonFinite:
    """What to do, and where to say so.

    Args:
        action: one of ``skip``, ``raise``, ``stop``, ``shrink_recurrent``, ``ignore``.
        max_successive: after so many in a row training is stopped.
    """

    action: str
    max_successive: int | None
    recorder: ClipRecorder

    def check(self, module: LightningModule) -> None:
        """See before training that there is something to act on.

        Raises:
            ValueError: no recurrent weights to shrink.
        """
        if self.action == "shrink_recurrent" and not any(RECURRENT in name for name, _ in module.named_parameters()):
            raise ValueError(
                f'`on_nonfinite="shrink_recurrent"` needs parameters whose name holds {RECURRENT!r}, as those of nn.RNN, '
                f'nn.LSTM, nn.GRU and their cells do; {type(module).__name__} has none. Use on_nonfinite="skip".'
            )

    def concerns(self, norm: float) -> bool:
        """Whether a step with this norm is not to be taken as it is."""
        return not math.isfinite(norm) or (self.action == "shrink_recurrent" and norm > HUGE)

    def handle(
        self,
        trainer: Trainer,
        optimizer: Optimizer,
        index: int,
        norm: float,
        groups: Sequence[PolicyGroup],
        state: OptimizerState,
    ) -> None:
        """Act, count and report.

        Args:
            index: which of the Trainer's optimizers it is.

        Raises:
            NonFiniteGradientError: the action is ``raise``.
        """
        if self.action == "raise":
            raise NonFiniteGradientError(
                f"The gradient norm is {norm} at optimizer step {trainer.global_step} (epoch {trainer.current_epoch}, "
                f'batch {self.recorder.batch_idx}). Use AdaptiveClip(on_nonfinite="skip") to pass over such steps, or '
                "GradWatch() to see where it begins."
            )
        if self.action == "ignore":
            state.rest.count(UNTOUCHED)
            self.recorder.step(trainer, index, Outcome(norm, UNTOUCHED, norm), state.rest)
        elif self.action == "shrink_recurrent" and shrink_recurrent_(groups):
            after = true_norm([gradient for group in groups for gradient in group.gradients])
            state.rest.count_replaced()
            self._say(trainer, index, norm, state.rest.successive_skips, replaced_by=after)
            self.recorder.step(trainer, index, Outcome(norm, Decision(None, after / norm), after), state.rest)
        else:
            skip_step(trainer, optimizer, [parameter for group in groups for parameter in group.parameters])
            state.rest.count_skip()
            self._say(trainer, index, norm, state.rest.successive_skips)
            self.recorder.step(trainer, index, Outcome(norm, UNTOUCHED, norm), state.rest, skipped=True)

    def _say(
        self, trainer: Trainer, index: int, norm: float, successive: int, *, replaced_by: float | None = None
    ) -> None:
        alarm = successive == self.max_successive
        stops = alarm or self.action == "stop"
        if stops:
            stop_training(trainer)
        kind = EventKind.STEP_SKIPPED if replaced_by is None else EventKind.GRADIENT_CLIPPED
        did = "skipped" if replaced_by is None else "replaced the gradients of"
        if alarm:
            self.recorder.warn_once(
                "alarm",
                f"AdaptiveClip {did} {successive} steps in succession, since their gradients were not finite; training "
                "is stopped. Look at the events for where it began. A hidden state that the module carries from batch to batch keeps "
                "a NaN: begin it anew where it is not finite. Or raise `max_successive_skips`.",
            )
        details: list[str] = []
        if replaced_by is not None:
            details.append(f"Recurrent weights got {SHRINK} of themselves for a gradient, all others zero.")
        if alarm:
            details.append(f"So were the {successive - 1} before it: training is stopped.")
        self.recorder.event(
            trainer,
            kind,
            index,
            value=norm,
            threshold=replaced_by,
            action="stopped" if stops else "skipped" if replaced_by is None else "replaced",
            detail=" ".join(details),
            severity=Severity.CRITICAL if alarm else Severity.WARNING,
        )
