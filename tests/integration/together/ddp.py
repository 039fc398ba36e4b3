"""Trains on two ranks, one scenario after the other, and leaves what each rank ended with in ``<out>/<scenario>.rank<N>.pt``.

Usage: ``python -m tests.integration.together.ddp OUT STRATEGY SCENARIO …``; STRATEGY is ``ddp``, ``ddp_spawn`` or ``ddp_fork``.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_gradwatch import AdaptiveClip, GradWatch, StartFinder
from lightning_gradwatch.callbacks.fit.fit_watch import FitWatch
from lightning_gradwatch.recurrent import Capture
from tests.models import TinyLanguageModel, sentences

SPOILT_BATCH, SPOILT_TIMESTEP, SPOILT_SEQUENCE = 1, 3, 2
FSDP2_BOUND = 0.12
"""Of `fsdp2.py`, here since that needs the newer releases. Within the range of its steps' norms: some are clipped, some are not."""


class Model(TinyLanguageModel):
    """A language model whose rank 1 sees longer sequences, and on demand a NaN: in its ``input``, or in the gradient of its ``output``."""

    def __init__(self, spoil: str | None) -> None:
        super().__init__(layers=2, before_rnn=self.plant)
        self.spoil, self.now = spoil, False
        self.rnn.register_forward_hook(self.plant_gradient)

    def plant(self, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.now = self.global_rank == 1 and self.current_epoch == 0 and batch_idx == SPOILT_BATCH
        return self.spoilt(x) if self.now and self.spoil == "input" else x

    def plant_gradient(self, module: torch.nn.Module, inputs: object, outputs: tuple[torch.Tensor, object]) -> None:
        if self.now and self.spoil == "output":
            outputs[0].register_hook(self.spoilt)

    def spoilt(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[SPOILT_SEQUENCE, SPOILT_TIMESTEP, 1] = math.nan
        return x

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.loss(batch[0][:, : 6 + 3 * self.global_rank], batch_idx)


class FailsAtStart(FitWatch):
    """What a fit is watched by, failing before any hook is on."""

    def _report_unreachable(self, reasons) -> None:
        if self.trainer.global_rank == 1:
            raise RuntimeError("our own")
        super()._report_unreachable(reasons)


class FailsOnRankOne(GradWatch):
    """A GradWatch whose own code fails on rank 1: at the start of fit, or in a step."""

    def __init__(self, where: str, **options: object) -> None:
        super().__init__(**options)
        self.where = where
        self.fit_watch = FailsAtStart if where == "start" else FitWatch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.global_rank == 1 and self.where == "step" and self._fit.watch is not None:
            self._fit.watch.capture.failure = RuntimeError("our own")


class SeesNothingOnRankOne(GradWatch):
    """A GradWatch that rank 1 shows no call."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.global_rank == 1:
            self._fit.watch.capture.end()


class Save(pl.Callback):
    """Leaves the rank's end state on disk, whichever process it is in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer, pl_module) -> None:
        found: dict[str, object] = {
            "weights": {name: value.clone() for name, value in pl_module.state_dict().items()},
            "optimizer": trainer.optimizers[0].state_dict(),
            "rng": torch.get_rng_state(),
            "global_step": trainer.global_step,
        }
        for callback in trainer.callbacks:
            if isinstance(callback, GradWatch | AdaptiveClip):
                found[type(callback).__name__] = {
                    "events": [event.to_record() for event in callback.events],
                    "run_dir": None if callback.run_dir is None else str(callback.run_dir),
                    "hooks": _hooks(pl_module),
                }
        torch.save(found, self.path.with_suffix(f".rank{trainer.global_rank}.pt"))


def _hooks(module: torch.nn.Module) -> int:
    hooks = [hook for m in module.modules() for hook in m._forward_hooks.values()]
    return sum(isinstance(getattr(hook, "__self__", None), Capture) for hook in hooks)


def callbacks_of(scenario: str, out: Path) -> list[pl.Callback]:
    run = out / f"{scenario}-log"
    watch = {"every_n_steps": 2, "dirpath": run}
    return {
        "bare": [],
        "watched": [GradWatch(**watch)],
        "both": [GradWatch(**watch), AdaptiveClip(dirpath=run)],
        "nan": [GradWatch(**watch), AdaptiveClip(dirpath=run)],
        "backward-nan": [GradWatch(**watch), AdaptiveClip(dirpath=run)],
        "nan-clip-first": [AdaptiveClip(dirpath=run), GradWatch(**watch)],
        "fails-at-start": [FailsOnRankOne("start", **watch), AdaptiveClip(dirpath=run)],
        "fails-in-step": [FailsOnRankOne("step", **watch), AdaptiveClip(dirpath=run)],
        "sees-nothing": [SeesNothingOnRankOne(**watch), AdaptiveClip(dirpath=run)],
        "fast-dev-run": [GradWatch(), AdaptiveClip()],
        "default-folder": [GradWatch(), AdaptiveClip()],
        "accumulation": [GradWatch(**watch), AdaptiveClip(dirpath=run)],
        "bare-accumulation": [],
        "through-time": [GradWatch(**watch), AdaptiveClip(clip_through_time=1e-4, dirpath=run)],
        "through-time-loose": [AdaptiveClip(clip_through_time=1e6, dirpath=run)],
        "started": [StartFinder(["gate_bias"], apply="chrono", summary=False)],
    }[scenario]


def train(scenario: str, strategy: str, out: Path) -> None:
    """Run one scenario on this rank."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    options: dict[str, object] = {"max_steps": 4}
    if scenario == "fast-dev-run":
        options = {"fast_dev_run": 2}
    if scenario.endswith("accumulation"):
        options["accumulate_grad_batches"] = 2
    logger = CSVLogger(out / "default", name="csv") if scenario == "default-folder" else False
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        callbacks=[*callbacks_of(scenario, out), Save(out / scenario)],
        default_root_dir=out,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    if scenario == "started":  # a rank's own stream goes its own way
        torch.manual_seed(trainer.global_rank)
    spoil = "input" if scenario.startswith("nan") else "output" if scenario == "backward-nan" else None
    trainer.fit(Model(spoil), sentences(64))


if __name__ == "__main__":
    for name in sys.argv[3:]:
        train(name, sys.argv[2], Path(sys.argv[1]))
