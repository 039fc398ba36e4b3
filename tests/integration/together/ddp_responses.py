"""Trains on two ranks with a response to an anomaly on rank 1 alone, and leaves what each rank ended with.

Usage: ``python -m tests.integration.together.ddp_responses OUT SCENARIO …``, under torchrun.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_gradwatch import AnomalyError, GradWatch
from tests.integration.together.ddp import FailsOnRankOne, Model, Save
from tests.models import sentences

SPOILT_BATCH, TIMESTEP, SEQUENCE = 5, 3, 2


class LateModel(Model):
    """The sixth batch of rank 1 is marked; a marked batch gets a NaN."""

    def on_after_batch_transfer(self, batch: list[torch.Tensor], dataloader_idx: int) -> list[torch.Tensor]:
        at = self.trainer.fit_loop.epoch_loop.batch_idx + 1
        marked = self.spoil and self.global_rank == 1 and at == SPOILT_BATCH
        return [*batch, torch.tensor(marked)]

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.marked = bool(batch[1])
        return self.loss(batch[0], batch_idx)

    def plant(self, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.marked:
            x = x.clone()
            x[SEQUENCE, TIMESTEP, 1] = math.nan
        return x


class SkipsBatches(LateModel):
    """Passes over batches as if they had no loss: a loss that the parameters have no part in."""

    def __init__(self, without: tuple[int, ...]) -> None:
        super().__init__(spoil=False)
        self.without = without

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.trainer.fit_loop.epoch_loop.batch_idx in self.without:
            for parameter in self.parameters():
                parameter.grad = None


def callbacks_of(scenario: str, out: Path) -> list[pl.Callback]:
    watch = {"dirpath": out / f"{scenario}-log", "snapshot_every_n_steps": 2, "bundles": 1}
    return {
        "bare": [],
        "bare-skip": [],
        "bare-rollback": [],
        "ready": [GradWatch(on_anomaly="rollback", **watch)],
        "skip": [GradWatch(on_anomaly="skip", **watch)],
        "rollback": [GradWatch(on_anomaly="rollback", **watch)],
        "stop": [GradWatch(on_anomaly="stop", **watch)],
        "raise": [GradWatch(on_anomaly="raise", **watch)],
        "fails": [FailsOnRankOne("step", on_anomaly="skip", **watch)],
    }[scenario]


def train(scenario: str, out: Path) -> None:
    """Run one scenario on this rank."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    without = {"bare-skip": (SPOILT_BATCH,), "bare-rollback": (2, 3, 4, SPOILT_BATCH)}.get(scenario)
    model = SkipsBatches(without) if without else LateModel(scenario not in ("bare", "ready"))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        callbacks=[*callbacks_of(scenario, out), Save(out / scenario)],
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(model, sentences(128))
    except AnomalyError as error:
        (out / f"{scenario}.rank{trainer.global_rank}.txt").write_text(str(error))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        train(name, Path(sys.argv[1]))
