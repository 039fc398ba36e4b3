"""One training of the demo: a quiet Trainer with the callbacks, a progress bar, and what came of
it."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.trainer.compat import Callback, LightningDataModule, LightningModule, Trainer

_STEPS_AFTER_NAN = 5
"""A NaN does not heal; a few steps more show it, the rest would be lost time."""


@dataclass(frozen=True, slots=True)
class Training:
    """What came of one training.

    Args:
        losses: of each step, in nats.
        perplexity: on held-out data; NaN if the model's is.
        weights_finite: whether every weight is, at the end.
        run: the run log.
    """

    losses: tuple[float, ...]
    perplexity: float
    weights_finite: bool
    run: Run

    @property
    def first_nonfinite_step(self) -> int | None:
        """The first step (counted from 0) whose loss was NaN or inf; None if there was none."""
        return next((step for step, loss in enumerate(self.losses) if not math.isfinite(loss)), None)


def train(
    model: LightningModule,
    data: LightningDataModule,
    *,
    name: str,
    steps: int,
    folder: Path,
    console: Any,
    sample_every: int,
    anchors: int = 4,
    clip: AdaptiveClip | None = None,
    max_norm: float | None = None,
    accelerator: str = "cpu",
) -> Training:
    """Train under ``GradWatch``, and say how well the model does on held-out data.

    Args:
        model, data: what is trained, on what; the model must log ``val_perplexity``.
        name: in the progress bar.
        steps: optimizer steps; fewer if the loss becomes NaN.
        folder: where the run log goes.
        console: a ``rich.console.Console``.
        sample_every, anchors: GradWatch's.
        clip: adaptive clipping, if any.
        max_norm: the Trainer's own fixed clipping, if any.
        accelerator: the Trainer's.
    """
    progress = _Progress(name, steps, console)
    watch = GradWatch(every_n_steps=sample_every, anchors=anchors, dirpath=folder, summary=False)
    if clip is not None:
        clip.dirpath = folder
    with quiet():
        trainer = Trainer(
            max_steps=steps,
            accelerator=accelerator,
            devices=1,
            callbacks=[watch, *([clip] if clip is not None else []), progress],
            gradient_clip_val=max_norm,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            limit_val_batches=0,
        )
        trainer.fit(model, datamodule=data)
        trainer = Trainer(
            accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        measured = trainer.validate(model, datamodule=data, verbose=False)
    finite = all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    return Training(tuple(progress.losses), measured[0]["val_perplexity"], finite, load_run(watch.run_dir or folder))


class _Progress(Callback):
    """A bar, the losses of all steps, and an end to a training that is lost."""

    def __init__(self, name: str, steps: int, console: Any) -> None:
        rich = require("rich.progress")
        self.losses: list[float] = []
        self._steps = steps
        self._bar = rich.Progress(
            rich.TextColumn("  {task.description:<28}"),
            rich.BarColumn(24),
            rich.TextColumn("{task.completed:>4}/{task.total} steps"),
            rich.TextColumn("loss {task.fields[loss]}"),
            rich.TimeElapsedColumn(),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(name, total=steps, loss="")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw it."""
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it."""
        loss: Tensor = outputs["loss"]
        self.losses.append(float(loss.detach()))
        self._bar.update(self._task, advance=1, loss=f"{self.losses[-1]:.3f}")
        if len(self.losses) > _STEPS_AFTER_NAN and not any(map(math.isfinite, self.losses[-_STEPS_AFTER_NAN:])):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave it as it is."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._bar.stop()


@contextmanager
def quiet() -> Generator[None]:
    """Without Lightning's notes on devices, loaders and stopping, which say nothing about the
    demo."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(lightning|pytorch_lightning|torch)\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def reproducible(seed: int) -> Generator[None]:
    """The same numbers from the same seed, however many cores there are; the caller's generator is
    put back.

    One thread: recurrent layers of this size gain nothing from a second one.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
