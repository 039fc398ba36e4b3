"""Small recurrences run by hand: a module, and how it is run over inputs ``(batch, time, width)``, to its states and a loss on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, HIDDEN = 3, 8

Run = Callable[[Any, Tensor], Tensor]


class ByHand(pl.LightningModule):
    """Trains ``net`` on the loss of ``run(net, x)``."""

    def __init__(self, net: nn.Module, run: Run) -> None:
        super().__init__()
        self.net, self.run = net, run

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.run(self.net, batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def series(*shape: int, count: int = 32, batch: int = 8) -> DataLoader:
    """Random inputs of a shape, by default of 12 timesteps."""
    inputs = torch.randn(count, *(shape or (12, WIDTH)), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs), batch)


class OwnCell(nn.Module):
    """h ← tanh(W x + U h)."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + self.h(h))


class WithStart(nn.Module):
    """A recurrent module with a trained initial state."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.start = rnn, nn.Parameter(torch.randn(1, 1, HIDDEN))

    def begin(self, x: Tensor) -> Tensor:
        return self.start.expand(1, len(x), HIDDEN).contiguous()


def zeros(x: Tensor) -> Tensor:
    return torch.zeros(len(x), HIDDEN)


def fused(pass_on: Callable[[Any], Any], pieces: int = 1) -> Run:
    """A fused, batch-first module fed ``pieces`` timesteps at a time; ``pass_on`` makes the next initial state of a final one."""

    def run(rnn: nn.Module, x: Tensor) -> Tensor:
        state, total = None, 0
        for piece in x.split(pieces, 1):
            output, state = rnn(piece, state)
            total = total + output.square().mean()
            state = pass_on(state)
        return total

    return run


def cell(pass_on: Callable[[Tensor], Tensor | None]) -> Run:
    """The same of a cell with one state."""

    def run(rnn: nn.Module, x: Tensor) -> Tensor:
        h: Tensor | None = zeros(x)
        total = 0
        for t in range(x.shape[1]):
            out = rnn(x[:, t], h)
            total = total + out.square().mean()
            h = pass_on(out)
        return total

    return run


def lstm_cell(pass_on: Callable[[Tensor], Tensor]) -> Run:
    """The same of an nn.LSTMCell, h and c alike."""

    def run(rnn: nn.Module, x: Tensor) -> Tensor:
        h = c = zeros(x)
        total = 0
        for t in range(x.shape[1]):
            h, c = rnn(x[:, t], (pass_on(h), pass_on(c)))
            total = total + h.square().mean()
        return total

    return run
