"""A forget gate that is open already: no advice to open it, and no word that nothing is learned."""

from __future__ import annotations

import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import EventKind, GradWatch
from tests.models import trainer

HIDDEN = 6


class Remembers(pl.LightningModule):
    """An LSTM whose cell state lasts, and whose output gate lets little of it out: the gradient falls once, and stays."""

    def __init__(self, timesteps: int, out: float = -6.0, keep: float | None = None) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 1)
        with torch.no_grad():
            for name, weight in self.rnn.named_parameters():
                if name.startswith(("weight_hh", "bias_hh")):
                    weight.zero_()
                elif name.startswith("bias_ih"):
                    weight[HIDDEN : 2 * HIDDEN] = math.log(timesteps) if keep is None else keep
                    weight[3 * HIDDEN :] = out
                elif name.startswith("weight_ih"):
                    weight[HIDDEN : 2 * HIDDEN] = 0.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.head(self.rnn(batch[0])[0][:, -1]) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


def said(tmp_path: Path, model: Remembers, timesteps: int) -> tuple[str, str, str]:
    """The verdict of layer 0, and the event's message and remedy."""
    torch.manual_seed(0)
    watch = GradWatch(every_n_steps=2)
    data = DataLoader(TensorDataset(torch.randn(64, timesteps, 3)), 8)
    trainer(tmp_path, [watch], max_steps=8).fit(model, data)
    event = next(e for e in watch.events if e.kind == EventKind.VANISHING_HIDDEN_GRADIENT and e.action is None)
    return watch.verdicts[0].sentence, event.message, event.remedy


@pytest.mark.parametrize(("timesteps", "out"), [(40, -6.0), (60, -5.5), (100, -5.2)])
def test_a_gate_that_is_open_is_not_to_be_opened(tmp_path, timesteps: int, out: float) -> None:
    """Curve and remedy speak of the first lags, where the gradient is lost."""
    torch.manual_seed(0)
    verdict, message, remedy = said(tmp_path, Remembers(timesteps, out), timesteps)
    assert "and then hardly any more" in verdict
    assert "is not learned" not in verdict
    assert "nothing is learned" not in message
    assert "the gate that keeps the state is open already" in remedy
    assert "begin with a forget-gate bias" not in remedy


@pytest.mark.parametrize("keep", [0.0, 1.0, 2.0])
def test_a_gate_that_is_half_closed_is_to_be_opened(tmp_path, keep: float) -> None:
    """The state fades from lag to lag: ln T is the advice, with the number."""
    torch.manual_seed(0)
    verdict, message, remedy = said(tmp_path, Remembers(60, keep=keep), 60)
    assert "what lies further back is not learned" in verdict
    assert "nothing is learned from them" in message
    assert "bias of ln 60 = 4.1" in remedy
