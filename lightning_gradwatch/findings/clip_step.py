"""One optimizer step of clipping: it is measured, and clipped, left to the gradient scaler, or
acted on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.clip.step.groups import PolicyGroup
from lightning_gradwatch.clip.step.measure_and_clip import clip, measure, whole_norm
from lightning_gradwatch.clip.step.state import OptimizerState
from lightning_gradwatch.findings.clip_events import ClipEvents
from lightning_gradwatch.findings.clip_nonfinite import NonFinite
from lightning_gradwatch.findings.clip_record import ClipRecord
from lightning_gradwatch.recurrent.capture.direct_norm import DirectNorms


@dataclass(frozen=True)
class ClipStep:
    """Clips one step after the other, with a Trainer and without.

    Args:
        events: counts and tells them; of one training.
        nonfinite: what to do with a step whose gradients are not finite.
        deferring: another clips; the norms are judged and told alone.
        skipped_by_scaler: asked where they are not finite: the scale, where the gradient scaler
            skips this step by itself; else None.
        agreed: makes of this process's losses one that all processes have in common, on the device;
            None where there is no other.
        direct: what has arrived at the recurrent modules, with ``loss_scale`` in it.
    """

    events: ClipEvents
    nonfinite: NonFinite
    skipped_by_scaler: Callable[[], float | None]
    deferring: bool = False
    agreed: Callable[[Sequence[Tensor]], Tensor | None] = lambda losses: None
    direct: DirectNorms | None = None
    loss_scale: Tensor | float = 1.0

    def take(
        self,
        record: ClipRecord,
        optimizer: Optimizer,
        index: int,
        groups: Sequence[PolicyGroup],
        state: OptimizerState,
        losses: Sequence[Tensor],
    ) -> None:
        """Measure, decide, act.

        Args:
            index: which of the optimizers it is; ``state`` is its own.
            groups: those with gradients.
            losses: of this process, of the backward passes since the last step, scalars, where they
                are known.

        Raises:
            NonFiniteGradientError: the gradients are not finite, and that was asked for.
        """
        state.begin(record.number)
        wanted = any(getattr(group.state.policy, "wants_loss", False) for group in groups)
        measured, last, mean = measure(
            groups,
            deferring=self.deferring,
            losses=losses,
            common=self.agreed(losses) if wanted else None,
            direct=self.direct,
            scale=self.loss_scale,
        )
        record.take_loss(last)
        norm = whole_norm(measured)
        if self.nonfinite.concerns(norm):
            scale = self.skipped_by_scaler()
            if scale is None:
                self.nonfinite.handle(record, optimizer, index, norm, groups, state)
            else:
                self.events.overflow(record, index, norm, scale, state)
            return
        loss = mean if wanted else None
        pairs = zip(groups, measured, strict=True)
        outcomes = [clip(group, one, deferring=self.deferring, loss=loss) for group, one in pairs]
        self.events.taken(record, index, groups, outcomes, state)
