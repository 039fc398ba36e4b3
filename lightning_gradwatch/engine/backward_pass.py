"""What is known of one backward pass besides its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_gradwatch.events import Moment


@dataclass(frozen=True, slots=True)
class Step:
    """One backward pass.

    Args:
        moment: when it is.
        micro_batch: which one of the optimizer step.
        sampled: whether it is measured in full.
        accumulation: by how much the loss was divided for gradient accumulation.
        scale: by how much a gradient scaler multiplied it.
        complete: whether the parameters' gradients are those of the whole optimizer step.
        scaled: whether a gradient scaler is at work.
        loss: with its graph; None where it is not known.
        batch: what the training step was given.
        is_eve: whether the next optimizer step will be measured in full.
    """

    moment: Moment
    micro_batch: int
    sampled: bool
    accumulation: int
    scale: Tensor | float
    complete: bool
    scaled: bool
    loss: Tensor | None = None
    batch: Any = None
    is_eve: bool = False

    def unscale(self) -> float:
        """By what hidden-state gradients are multiplied to undo both. A host
        sync where a scaler is at work.
        """
        return self.accumulation / float(self.scale)

    def loss_value(self) -> float | None:
        """The loss as the training step returned it. A host sync: for sampled steps."""
        if self.loss is None or self.loss.numel() != 1:
            return None
        return float(self.loss.detach()) * self.unscale()
