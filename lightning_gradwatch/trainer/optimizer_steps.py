"""How many optimizer steps a training has done, also those of a bare optimizer, of
which Lightning knows nothing.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.step_hooks import keep_step_hooks, once_a_step
from lightning_gradwatch.trainer.compat import Trainer


class OptimizerSteps:
    """Of one fit. A step through Lightning comes with ``on_before_optimizer_step`` and is in
    ``trainer.global_step``; one that a model makes by itself, with
    ``self.optimizers(use_pl_optimizer=False)``, is heard by a hook on the optimizer alone.

    Attributes:
        bare: the steps that Lightning did not count.
    """

    def __init__(self, bare: int = 0) -> None:
        self.bare = bare
        self._announced: set[int] = set()
        self._handles: list[RemovableHandle] = []

    def listen(self, trainer: Trainer) -> None:
        """Count the bare steps too. Only where the model optimizes by hand are there any."""
        if not trainer.lightning_module.automatic_optimization:
            keep_step_hooks()
            self._handles = [one.register_step_post_hook(once_a_step(self._stepped)) for one in trainer.optimizers]

    def announce(self, optimizer: Optimizer) -> None:
        """Lightning is about to make a step of it, and will count it."""
        if self._handles:
            self._announced.add(id(optimizer))

    def done(self, trainer: Trainer) -> int:
        """Up to now."""
        return trainer.global_step + self.bare

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        if id(optimizer) in self._announced:
            self._announced.discard(id(optimizer))
        else:
            self.bare += 1

    def __getstate__(self) -> dict[str, Any]:
        """A copy counts on by itself, and hears nothing."""
        return {"bare": self.bare, "_announced": set[int](), "_handles": list[RemovableHandle]()}


def index_of(optimizer: Optimizer, trainer: Trainer) -> int:
    """Which of the Trainer's optimizers; one that it does not know counts after them."""
    return next((i for i, known in enumerate(trainer.optimizers) if known is optimizer), len(trainer.optimizers))
