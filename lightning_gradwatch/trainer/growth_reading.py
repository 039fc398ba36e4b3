"""AdaptiveClip's reading of how the gradient grows through time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lightning_gradwatch.recurrent.capture.direct_norm import DirectNorms
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, was_stopped
from lightning_gradwatch.trainer.mixed_precision import loss_scale


class GrowthReading:
    """For one fit, the hooks on the model; none where no policy asks for the growth, or where
    several processes train, each of which would see its own.
    """

    def __init__(self) -> None:
        self._norms: DirectNorms | None = None
        self.scale: Tensor | float = 1.0  # of the loss, and so of what arrives

    def begin(self, trainer: Trainer, module: LightningModule, policies: Iterable[object]) -> None:
        """Put the hooks on."""
        self.end()
        if trainer.world_size == 1 and any(getattr(policy, "wants_growth", False) for policy in policies):
            self._norms = DirectNorms(FitIsOver(lambda: self._is_over(trainer)))
            self._norms.attach(module)

    def before_backward(self, trainer: Trainer) -> None:
        """Note by how much the gradient scaler scales the loss of this backward pass."""
        if self._norms is not None:
            self.scale = loss_scale(trainer)

    @property
    def norms(self) -> DirectNorms | None:
        """What has arrived; None without hooks."""
        return self._norms

    def end(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        norms, self._norms = self._norms, None
        if norms is not None:
            norms.detach()

    def _is_over(self, trainer: Trainer) -> bool:
        """Whether the fit was broken off without a word to us; then the hooks come off."""
        if was_stopped(trainer):
            self.end()
        return self._norms is None

    def __getstate__(self) -> dict[str, Any]:
        return {"_norms": None, "scale": 1.0}
