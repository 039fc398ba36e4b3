"""Healthy training runs in a real Trainer, of kinds whose norms look like explosions: the default policy leaves each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import AdaptiveClip
from tests.integration.clipping.clip_models import trainer_for


class RareClass(pl.LightningModule):
    """Three classes, one of them in one batch of twelve: its gradient stays large when that of the others has gone."""

    steps = 600

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.rnn, self.out, self.make = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 3), make

    def data(self) -> TensorDataset:
        y = torch.multinomial(torch.tensor([0.495, 0.495, 0.01]), 8 * self.steps, replacement=True)
        x = 0.2 * torch.randn(len(y), 8, 2)
        x[:, -3:] += torch.tensor([[1.5, 0.0], [-1.5, 0.0], [0.0, 1.5]])[y][:, None]
        return TensorDataset(x, y)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.out(self.rnn(batch[0])[1][0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


class SummedLoss(RareClass):
    """The loss of all timesteps and sequences is summed: gradients are hundreds of times as large as the weights."""

    steps = 60

    def __init__(self, make: Any) -> None:
        super().__init__(make)
        self.rnn, self.out = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 8)

    def data(self) -> TensorDataset:
        x = torch.randn(8 * self.steps, 40, 8)
        return TensorDataset(x, 0.3 * x.cumsum(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self.out(self.rnn(batch[0])[0]) - batch[1]).square().sum() * 8


class TwoTasks(RareClass):
    """Every other batch trains a small head alone, and the rest of the parameters have no gradient then."""

    steps = 80

    def __init__(self, make: Any) -> None:
        super().__init__(make)
        self.rnn, self.out, self.small = nn.GRU(2, 64, batch_first=True), nn.Linear(64, 3), nn.Linear(2, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx % 2:
            return 0.01 * self.small(batch[0]).square().mean()
        return 30 * super().training_step(batch, batch_idx)


class TwoRates(RareClass):
    """What has a gradient trains slowly, and what has none to speak of fast."""

    steps = 80

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        scale = 1 + 5 * (batch_idx % 7 == 6)
        frozen = nn.functional.linear(self.rnn(x)[1][0], self.out.weight.detach())
        return scale * nn.functional.cross_entropy(frozen, y) + 1e-6 * self.out.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": self.rnn.parameters(), "lr": 1e-4}, {"params": self.out.parameters(), "lr": 100.0}]
        return torch.optim.SGD(groups)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 5e-3)


def sgd(rate: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, rate)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (RareClass, adam),
        (RareClass, sgd(0.3)),
        (SummedLoss, adam),
        (SummedLoss, sgd(1e-5)),
        (TwoTasks, sgd(0.01)),
        (TwoRates, None),
    ],
)
def test_a_healthy_run_is_left_alone(tmp_path: Path, kind: type[RareClass], make: Any) -> None:
    """Not one step is clipped; of a summed loss under Adam the first may be, when nothing is known yet."""
    module, callback = kind(make), AdaptiveClip()
    trainer = trainer_for(tmp_path, callback)
    trainer.fit(module, DataLoader(module.data(), batch_size=8))
    assert trainer.global_step == kind.steps
    unknown = {0} if (kind, make) == (SummedLoss, adam) else set()
    assert {event.step for event in callback.events} <= unknown
