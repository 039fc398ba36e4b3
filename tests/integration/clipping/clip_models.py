"""Tiny modules whose gradients a test can spoil at a known step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Momentum and weight decay, which move weights even where gradients are zero."""
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1)


class Regression(pl.LightningModule):
    """A linear regression; at the batches of ``spoil`` the loss is multiplied by the factor named there."""

    def __init__(self, spoil: dict[int, float] | None = None, make: MakeOptimizer = sgd) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.spoil, self.make = spoil or {}, make
        self.weights: list[list[Tensor]] = []
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.weights.append([p.detach().clone() for p in self.parameters()])
        loss = (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()
        self.losses.append(float(loss))
        self.log("loss", loss)
        return loss * self.spoil.get(self.global_step, 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


class Adversarial(pl.LightningModule):
    """Two optimizers, stepped by hand; the second one's loss is spoilt at a step."""

    def __init__(self, spoil: dict[int, float] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 1)
        self.spoil = spoil or {}

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for index, (net, optimizer) in enumerate(zip((self.a, self.b), self.optimizers(), strict=True)):  # type: ignore[arg-type]
            loss = net(batch).square().mean() * (self.spoil.get(batch_idx, 1.0) if index else 1.0)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.a.parameters(), 0.01), torch.optim.SGD(self.b.parameters(), 0.01)]


def data(batches: int = 12) -> DataLoader[Tensor]:
    """The same batches every time."""
    x = torch.randn(batches * 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(x, batch_size=4)  # type: ignore[arg-type]


def trainer_for(tmp_path: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A CPU Trainer that says nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def fit(trainer: pl.Trainer, module: pl.LightningModule, batches: int = 12, **options: Any) -> list[str]:
    """Fit, and return the warnings that name AdaptiveClip or its arguments."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data(batches), **options)
    return [str(w.message) for w in caught if "AdaptiveClip" in str(w.message) or "`on_event`" in str(w.message)]


def finite(module: nn.Module) -> bool:
    """Whether every parameter is."""
    return all(math.isfinite(float(p.detach().sum())) for p in module.parameters())
