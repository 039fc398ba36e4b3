"""The parameters of a model, those of the watched modules apart from the rest."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.recurrent import Capture
from lightning_gradwatch.recurrent.measure.gradient_norm import PendingNorms, gradient_norms


class Parameters:
    """As they were when they were last listed: some come while training.

    Attributes:
        watched: those of the watched modules.
        others: those of the rest of the model.
    """

    def __init__(self, model: nn.Module, capture: Capture) -> None:
        self._model, self._capture = model, capture
        self.update()

    def update(self) -> None:
        """List them anew."""
        self.watched: list[Tensor] = list(self._capture.parameters())
        watched = set(map(id, self.watched))
        self.others: list[Tensor] = [weight for weight in self._model.parameters() if id(weight) not in watched]

    def norms(self, loss: Tensor | None, step: Step) -> PendingNorms | None:
        """The norms of their gradients, on their way from the device;
        None where there is no gradient.
        """
        return gradient_norms(self.watched, self.others, loss=loss, scale=step.scale, accumulation=step.accumulation)
