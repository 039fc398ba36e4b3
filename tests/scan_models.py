"""Diagonal recurrences as people write them: computed by a scan for all timesteps at once, or one timestep after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch import tap_scan
from tests.models import TinyLanguageModel

Scan = Callable[[Tensor, Tensor], Tensor]
"""``(decay, inputs)``, both ``(batch, time, …)`` → states."""


def parallel(a: Tensor, b: Tensor) -> Tensor:
    """By doubling, differentiable."""
    reach = 1
    a, b = torch.broadcast_tensors(a, b)
    while reach < b.shape[1]:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return b


class Sequential:
    """One timestep after the other.

    Attributes:
        states: of the last scan, by timestep, in the graph.
        stacked: the same as one tensor.
    """

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(a, b)
        h, self.states = torch.zeros_like(b[:, 0]), list[Tensor]()
        for t in range(b.shape[1]):
            h = a[:, t] * h + b[:, t]
            self.states.append(h)
        self.stacked = torch.stack(self.states, 1)
        return self.stacked


class Gated(nn.Module):
    """As a minGRU: h ← (1 − z) h + z v, the gate of the inputs alone (Feng et al. 2024)."""

    def __init__(self, width: int, hidden: int, bias: float = 0.0) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        nn.init.constant_(self.gate.bias, bias)
        self.scan: Scan = parallel

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.sigmoid(self.gate(x))
        b = (1 - keep) * self.value(x)
        return tap_scan(self.scan(keep, b), keep, inputs=b, name="gated")


class LRU(nn.Module):
    """Complex and constant decays, in a ring (Orvieto et al. 2023, eq. 2 to 8)."""

    def __init__(self, width: int, hidden: int, low: float = 0.4, high: float = 0.9) -> None:
        super().__init__()
        size = torch.rand(hidden) * (high**2 - low**2) + low**2
        self.nu, self.theta = nn.Parameter((-0.5 * size.log()).log()), nn.Parameter((torch.rand(hidden) * 6.28).log())
        self.into = nn.Parameter(torch.randn(hidden, width, dtype=torch.complex64) / (2 * width) ** 0.5)
        self.out = nn.Parameter(torch.randn(width, hidden, dtype=torch.complex64) / hidden**0.5)
        self.scan: Scan = parallel

    def decay(self) -> Tensor:
        return torch.exp(torch.complex(-self.nu.exp(), self.theta.exp()))

    def forward(self, x: Tensor) -> Tensor:
        a = self.decay()
        h = tap_scan(self.scan(a, x.to(a.dtype) @ self.into.T), a, name="lru")
        return (h @ self.out.T).real


class HiddenLRU(LRU):
    """The same behind a kernel: only what is read out is known."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.decay()
        y = (self.scan(a, x.to(a.dtype) @ self.into.T) @ self.out.T).real
        return tap_scan(y, a, readout=self.out, name="lru")


class Selective(nn.Module):
    """As a Mamba block's scan: decays of the inputs, states for each channel, read out by C_t (Gu and Dao 2023)."""

    def __init__(self, width: int, states: int = 4) -> None:
        super().__init__()
        self.log_a = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.step, self.B, self.C = nn.Linear(width, width), nn.Linear(width, states), nn.Linear(width, states)
        self.scan: Scan = parallel

    def forward(self, x: Tensor) -> Tensor:
        step, B, C = nn.functional.softplus(self.step(x)), self.B(x), self.C(x)  # noqa: N806
        a = torch.exp(step[..., None] * -self.log_a.exp())
        h = self.scan(a, (step * x)[..., None] * B[:, :, None])
        y = torch.einsum("btdn,btn->btd", h, C)
        return tap_scan(y, a, readout=C, name="selective")


class Backwards(Gated):
    """A scan from the last timestep to the first."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.sigmoid(self.gate(x))
        h = self.scan(keep.flip(1), ((1 - keep) * self.value(x)).flip(1)).flip(1)
        return tap_scan(h, keep, name="back", reverse=True)


class ScanLanguageModel(TinyLanguageModel):
    """A language model of two scans on top of each other, with dropout between."""

    def __init__(self, **options: Any) -> None:
        super().__init__(dropout=0.2, **options)
        self.rnn = nn.Sequential(Gated(6, 6), nn.Dropout(0.2), Selective(6), nn.Linear(6, 8))

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        output = self.rnn(self.embedding(words[:, :-1]))
        return nn.functional.cross_entropy(self.head(self.drop(output)).flatten(0, 1), words[:, 1:].flatten())


class ComplexLanguageModel(ScanLanguageModel):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rnn = nn.Sequential(LRU(6, 8), nn.Dropout(0.2), HiddenLRU(6, 8), nn.Linear(6, 8))


SCANNED = {"a scan": ScanLanguageModel, "a complex scan": ComplexLanguageModel}
