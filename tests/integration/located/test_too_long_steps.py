"""Steps so long that the first few of them leave nothing finite: the rate is the cause, and lowering it the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import Event, EventKind, GradWatch
from lightning_gradwatch.events import Severity
from tests.models import trainer


class Regression(pl.LightningModule):
    def __init__(self, rnn: nn.Module, rate: float, optimizer: str, spoilt: bool = False) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(8, 1)
        self.rate, self.optimizer, self.spoilt = rate, optimizer, spoilt

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = (self.head(self.rnn(batch[0])[0]) - 1).square().mean()
        return loss / 0.0 if self.spoilt and self.trainer.global_step == 3 else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), self.rate)


def told(tmp_path: Path, model: Regression) -> list[Event]:
    torch.manual_seed(0)
    watch = GradWatch(every_n_steps=2)
    trainer(tmp_path, [watch], max_steps=12).fit(model, DataLoader(TensorDataset(torch.randn(64, 20, 3)), 8))
    return [event for event in watch.events if event.severity is Severity.CRITICAL]


WAYS = {
    "a plain cell": (nn.RNN, {}, 1e30, "SGD"),
    "a relu": (nn.RNN, {"nonlinearity": "relu"}, 1e3, "SGD"),
    "a relu under Adam": (nn.RNN, {"nonlinearity": "relu"}, 10.0, "Adam"),
    "an LSTM": (nn.LSTM, {}, 1e25, "SGD"),
    "a GRU under Adagrad": (nn.GRU, {}, 1e25, "Adagrad"),
}


@pytest.mark.parametrize("name", WAYS)
def test_steps_that_were_too_long_are_named_and_shorter_ones_help(tmp_path, name: str) -> None:
    """Within two steps the loss or a state is not finite: no word of a log, a division or a number format."""
    kind, options, rate, optimizer = WAYS[name]
    first, *_ = told(tmp_path / "long", Regression(kind(3, 8, batch_first=True, **options), rate, optimizer))
    assert first.kind in (EventKind.NONFINITE_LOSS, EventKind.NONFINITE_STATE)
    assert "Half of the weight matrices have grown" in first.message
    assert "too long" in first.message
    assert first.remedy == EventKind.DIVERGED.remedy
    assert told(tmp_path / "short", Regression(kind(3, 8, batch_first=True, **options), 1e-3, optimizer)) == []


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_loss_that_divides_by_zero_keeps_its_own_remedy(tmp_path, kind: type[nn.RNNBase]) -> None:
    """The weights are near where they began."""
    first, *_ = told(tmp_path, Regression(kind(3, 8, batch_first=True), 1e-3, "Adam", spoilt=True))
    assert first.kind == EventKind.NONFINITE_LOSS
    assert "divisor" in first.remedy
    assert "too long" not in first.message
