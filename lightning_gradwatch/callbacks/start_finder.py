"""The callback that compares initialisations before the first step, and sets one if asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_gradwatch.arguments import one_of, whole
from lightning_gradwatch.starts import STARTS, Comparison, compare_starts
from lightning_gradwatch.starts.compare import training_loss
from lightning_gradwatch.starts.initialise import apply_start
from lightning_gradwatch.trainer.compat import Callback, LightningModule, Trainer, rank_zero_warn, say
from lightning_gradwatch.trainer.sharding import out_of_reach


class StartFinder(Callback):
    """Before the first training step, measure on its batch how far the gradient would reach with
    each published initialisation, and say it in a table; with ``apply``, begin with one of them.

    Without ``apply`` the training is the same to the bit. It acts once, in a training that begins:
    a resumed one keeps its weights. Put it before ``GradWatch`` in the list of callbacks, so that
    the measured training begins with the weights that it sets.

    Args:
        starts: names of the initialisations to compare; by default all that are for the model.
            See :func:`compare_starts`.
        apply: the name of the one to begin with; None changes nothing.
        timesteps: for which a start is made; by default the longest sequence in the batch.
        summary: say the table, through Lightning's logger.

    Attributes:
        comparison: of the last fit; None before, and on other ranks than the first.

    Raises:
        ValueError: an argument breaks its rule; when training begins, ``apply`` is for no module of
            the model.
    """

    def __init__(
        self,
        starts: Sequence[str] | None = None,
        *,
        apply: str | None = None,
        timesteps: int | None = None,
        summary: bool = True,
    ) -> None:
        for start in starts or ():
            one_of("starts", start, STARTS, "Leave it out to compare all that are for the model.")
        if apply is not None:
            one_of("apply", apply, STARTS, "None compares and changes nothing.")
        if timesteps is not None:
            whole("timesteps", timesteps, "Leave it out to take the batch's own.")
        self._starts, self._apply, self._timesteps, self._summary = starts, apply, timesteps, summary
        self._is_due = False
        self.comparison: Comparison | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that begins is due; one that goes on is not."""
        self.comparison = None
        self._is_due = trainer.global_step == 0 and not trainer.ckpt_path

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compare on the first batch."""
        if not self._is_due:
            return
        self._is_due = False
        lengths = self._compare(trainer, pl_module, batch) if trainer.is_global_zero else {}
        if self._apply is not None:
            self._begin_with(self._apply, trainer, pl_module, lengths)

    def _compare(self, trainer: Trainer, module: LightningModule, batch: Any) -> Mapping[str, int]:
        """Timesteps by module."""
        reason = out_of_reach(trainer, module)
        try:
            if reason is not None:
                raise ValueError(f"{reason}.")
            with trainer.precision_plugin.forward_context():
                self.comparison = compare_starts(
                    module,
                    batch,
                    self._starts,
                    loss=training_loss if module.automatic_optimization else None,
                    timesteps=self._timesteps,
                )
        except Exception as error:  # whatever it is, it must not end a training that it was to look at
            rank_zero_warn(f"StartFinder compares nothing: {error}")
            return {}
        if self._summary:
            say(f"StartFinder: before training, on one batch.\n{self.comparison}")
        lengths = self.comparison.timesteps
        return {name: self._timesteps or lengths[name] for name in lengths}

    def _begin_with(self, start: str, trainer: Trainer, module: LightningModule, lengths: Mapping[str, int]) -> None:
        """The same weights on every rank, and no draw from the training's own generator."""
        seed, lengths = trainer.strategy.broadcast((torch.initial_seed() % 2**63, lengths))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            names = apply_start(module, start, lengths)
        say(f"StartFinder: {', '.join(names)} begin with {start} ({STARTS[start].source}).")
