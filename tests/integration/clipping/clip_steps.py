"""What AdaptiveClip's tests look at: each step's record, gradients and host syncs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.callbacks.adaptive_clip import AdaptiveClip
from lightning_gradwatch.events import EventKind
from tests.integration.clipping.clip_models import Regression, fit, trainer_for


def kinds(callback: AdaptiveClip) -> list[EventKind]:
    return [event.kind for event in callback.events]


def steps_of(callback: AdaptiveClip) -> list[dict[str, Any]]:
    assert callback.run_dir is not None
    lines = [json.loads(line) for line in (callback.run_dir / "steps.jsonl").read_text().splitlines()]
    return [line for line in lines if "grad_norm" in line]


class PlantHuge(pl.Callback):
    """Writes 1e30 into every entry of the gradients at step 3."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 3:
            for p in pl_module.parameters():
                p.grad.fill_(1e30)


class CountSyncs(TorchDispatchMode):
    """Counts the operators that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs, self.calls = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        self.syncs += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Counted(AdaptiveClip):
    """AdaptiveClip whose steps are counted."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        with CountSyncs() as count:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
        assert count.calls > 0
        self.__dict__.setdefault("syncs", []).append(count.syncs)


def frozen(parameters: Any) -> torch.optim.Optimizer:
    """So small a rate that every step's gradient is that of the first weights."""
    return torch.optim.SGD(parameters, 1e-12)


class KeepGradients(torch.optim.SGD):
    """Keeps the gradients that each step is given."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, 1e-12)
        self.kept: list[list[torch.Tensor]] = []

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        self.kept.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return loss


def gradients(tmp_path: Path, callback: AdaptiveClip | None, spoil: dict[int, float] | None = None) -> Any:
    """What the optimizer is given at each step."""
    torch.manual_seed(0)
    made: list[KeepGradients] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        made.append(KeepGradients(parameters))
        return made[0]

    fit(trainer_for(tmp_path, *([callback] if callback else [])), Regression(spoil, make))
    return made[0].kept


def rows(tmp_path: Path, callback: AdaptiveClip, module: Any = None) -> list[dict[str, str]]:
    fit(trainer_for(tmp_path, callback, logger=CSVLogger(tmp_path, version=0)), module or Regression(make=frozen))
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if any(v for k, v in row.items() if "clip_rate" in k)]
