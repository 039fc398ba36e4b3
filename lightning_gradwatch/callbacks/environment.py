"""The GradWatch that the environment adds: it makes way for one that the script has itself."""

from __future__ import annotations

from lightning_gradwatch.callbacks.grad_watch import GradWatch
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, rank_zero_info


class GradWatchFromEnvironment(GradWatch):
    """As :class:`GradWatch`. It is a class of its own so that its state in a checkpoint
    never collides with the script's.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, unless the script has a GradWatch of its own."""
        callbacks: list[object] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
        if any(isinstance(callback, GradWatch) and callback is not self for callback in callbacks):
            rank_zero_info("GRADWATCH=1 adds nothing: the script has a GradWatch of its own.")
            return
        super().on_train_start(trainer, pl_module)
