"""What clipping does with a step whose gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn
from torch.optim import Optimizer

from lightning_gradwatch import arguments
from lightning_gradwatch.clip import Decision
from lightning_gradwatch.clip.norms import true_norm
from lightning_gradwatch.clip.step.groups import PolicyGroup
from lightning_gradwatch.clip.step.measure_and_clip import UNTOUCHED, Outcome
from lightning_gradwatch.clip.step.nonfinite_step import (
    HUGE,
    RECURRENT,
    SHRINK,
    NonFiniteGradientError,
    shrink_recurrent_,
)
from lightning_gradwatch.clip.step.state import OptimizerState
from lightning_gradwatch.events import EventKind, Severity
from lightning_gradwatch.findings.clip_record import ClipRecord

Action = Literal["skip", "raise", "stop", "shrink_recurrent", "ignore"]


@dataclass(frozen=True)
class NonFinite:
    """What to do.

    Args:
        max_successive: after so many in a row training is stopped.
    """

    action: Action
    max_successive: int | None

    @classmethod
    def checked(cls, action: Action, max_successive: int | None, *, can_stop: bool) -> NonFinite:
        """From the arguments ``on_nonfinite`` and ``max_successive_skips``.

        Args:
            can_stop: whether there is a Trainer that can be stopped.

        Raises:
            ValueError: one breaks its rule.
        """
        actions = [one for one in get_args(Action) if can_stop or one != "stop"]
        arguments.one_of("on_nonfinite", action, actions, 'Leave it out for "skip".')
        if max_successive is not None:
            remedy = "None is no bound" + ('; `on_nonfinite="stop"` stops at the first.' if can_stop else ".")
            max_successive = arguments.whole("max_successive_skips", max_successive, remedy)
        return cls(action, max_successive)

    def check(self, module: nn.Module) -> None:
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
        record: ClipRecord,
        optimizer: Optimizer,
        index: int,
        norm: float,
        groups: Sequence[PolicyGroup],
        state: OptimizerState,
    ) -> None:
        """Act, count and report.

        Args:
            index: which of the optimizers it is.

        Raises:
            NonFiniteGradientError: the action is ``raise``.
        """
        rest = state.rest
        if self.action == "raise":
            skip, watch = record.tools.clip('on_nonfinite="skip"'), record.tools.watch()
            remedy = f"Use {skip} to pass over such steps, or {watch} to see where it begins."
            raise NonFiniteGradientError(f"The gradient norm is {norm} at {record.where()}. {remedy}")
        if self.action == "ignore":
            rest.count(UNTOUCHED)
            record.step(index, Outcome(norm, UNTOUCHED, norm), rest)
            return
        if self.action == "shrink_recurrent" and shrink_recurrent_(groups):
            after = true_norm([gradient for group in groups for gradient in group.gradients])
            rest.count_replaced()
            self._tell(record, index, norm, rest.successive_skips, replaced_by=after)
            record.step(index, Outcome(norm, Decision(None, after / norm), after), rest)
        else:
            after = None
            record.skip(optimizer, [parameter for group in groups for parameter in group.parameters])
            rest.count_skip()
            self._tell(record, index, norm, rest.successive_skips)
            record.step(index, Outcome(norm, UNTOUCHED, norm), rest, skipped=True)
        if self._stops(rest.successive_skips):
            record.stop(self._reason(record, rest.successive_skips, replaced=after is not None))

    def _alarms(self, successive: int) -> bool:
        return successive == self.max_successive

    def _stops(self, successive: int) -> bool:
        return self._alarms(successive) or self.action == "stop"

    def _reason(self, record: ClipRecord, successive: int, *, replaced: bool) -> str:
        """Why the training is stopped; said where it comes of several steps."""
        did = "replaced the gradients of" if replaced else "skipped"
        reason = (
            f"{record.tools.clipper} {did} {successive} steps in succession, since their gradients were not finite; training "
            "is stopped. Look at the events for where it began. A hidden state that the module carries from batch to batch "
            "keeps a NaN: begin it anew where it is not finite. Or raise `max_successive_skips`."
        )
        if self._alarms(successive):
            record.warn_once("alarm", reason)
        return reason

    def _tell(
        self, record: ClipRecord, index: int, norm: float, successive: int, *, replaced_by: float | None = None
    ) -> None:
        kind = EventKind.STEP_SKIPPED if replaced_by is None else EventKind.GRADIENT_CLIPPED
        alarms, details = self._alarms(successive), list[str]()
        if replaced_by is not None:
            details.append(f"Recurrent weights got {SHRINK} of themselves for a gradient, all others zero.")
        if alarms:
            details.append(f"So were the {successive - 1} before it: training is stopped.")
        record.event(
            kind,
            index,
            value=norm,
            threshold=replaced_by,
            action="stopped" if self._stops(successive) else "skipped" if replaced_by is None else "replaced",
            detail=" ".join(details),
            severity=Severity.CRITICAL if alarms else Severity.WARNING,
        )
