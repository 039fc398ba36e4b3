"""Recurrent networks as real models call them: one small LightningModule for each way."""

# Over 300 lines: one table of ways in which real models call a recurrent module.
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import tap
from tests.models import TinyLanguageModel
from tests.scan_models import LRU, Backwards, Gated, HiddenLRU, Selective

LENGTHS = torch.tensor([8, 5, 7, 3, 8, 2, 6, 4])
"""Of the batch's sequences where they differ."""


class PackingLSTM(nn.LSTM):
    """A subclass that packs inside its own forward."""

    def forward(self, x: Tensor, lengths: Tensor, enforce_sorted: bool = False):  # type: ignore[override]
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=enforce_sorted)
        output, state = super().forward(packed)
        return pad_packed_sequence(output, batch_first=True)[0], state


@dataclass
class Encoded:
    """A package's own container of an output."""

    values: Tensor
    state: Any


class ContainerGRU(nn.GRU):
    """A subclass that returns a container of its own."""

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Encoded:  # type: ignore[override]
        return Encoded(*super().forward(x, hx))


class LoopedGRU(nn.GRU):
    """A subclass that goes through the timesteps by itself; past a sequence's end its state stays as it is."""

    def forward(self, x: Tensor, hx: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h = x.new_zeros(len(x), self.hidden_size) if hx is None else hx[0]
        states: list[Tensor] = []
        for t, x_t in enumerate(x.unbind(1)):
            new = torch._VF.gru_cell(x_t, h, *self._flat_weights)  # type: ignore[attr-defined]
            h = new if mask is None else torch.where(mask[:, t, None], new, h)
            states.append(h)
        return torch.stack(states, 1), h[None]


def masked(rnn: nn.Module, x: Tensor) -> Tensor:
    """What lies past a sequence's end is no part of the loss."""
    mask = torch.arange(x.shape[1]) < LENGTHS[:, None]
    return rnn(x, mask=mask)[0] * mask[..., None]


class OwnCell(nn.Module):
    """A cell of one's own: h ← tanh(W [x, h])."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width + hidden, hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat([x, h], -1)))


class OwnCellWithOutput(OwnCell):
    """A cell that returns an output and, behind it, its state."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        state = super().forward(x, h)
        return self.out(state), state


def with_output(cell: nn.Module, x: Tensor) -> Tensor:
    h, outputs = start(x), []
    for t in range(x.shape[1]):
        output, h = cell(x[:, t], h)
        outputs.append(output)
    return torch.stack(outputs, 1)


class ResidualLSTMCell(nn.LSTMCell):
    """A subclass of a cell, with a forward of its own."""

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h, c = super().forward(x, hx)
        return h + 0.5 * hx[0], c


class ScriptedLoop(nn.Module):
    """A loop that is to be scripted."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 8)
        outputs = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            outputs.append(h)
        return torch.stack(outputs, 1)


class Way(TinyLanguageModel):
    """A language model whose recurrent part is ``run``, given the module ``rnn``."""

    def __init__(self, make: Callable[[], nn.Module], run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.rnn = make()
        self.run = run

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        output = self.run(self.rnn, self.embedding(words[:, :-1]))
        return nn.functional.cross_entropy(self.head(output).flatten(0, 1), words[:, 1:].flatten())


def start(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), 8)


def over_cell(cell: nn.Module, x: Tensor, call: Callable[[Any, Tensor, Any], Any] | None = None) -> Tensor:
    state: Any = (start(x), start(x)) if isinstance(cell, nn.LSTMCell) else start(x)
    outputs = []
    for t in range(x.shape[1]):
        state = (call or (lambda c, x, s: c(x, s)))(cell, x[:, t], state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs, 1)


def twice(rnn: nn.Module, x: Tensor) -> Tensor:
    """Encode the first half, decode the second from its state."""
    encoded, state = rnn(x[:, :4])
    decoded, _ = rnn(x[:, 4:], state)
    return torch.cat([encoded, decoded], 1)


def truncated(rnn: nn.Module, x: Tensor) -> Tensor:
    first, state = rnn(x[:, :4])
    second, _ = rnn(x[:, 4:], tuple(s.detach() for s in state))
    return torch.cat([first, second], 1)


def carried(rnn: nn.Module, x: Tensor) -> Tensor:
    """The state goes from batch to batch without its graph."""
    output, state = rnn(x, getattr(rnn, "carried", None))
    rnn.carried = tuple(s.detach() for s in state)
    return output


def stacked(cells: nn.Module, x: Tensor) -> Tensor:
    """Two cells, one above the other, their states in a list."""
    states, outputs = [start(x), start(x)], []
    for t in range(x.shape[1]):
        value = x[:, t]
        for i, cell in enumerate(cells):
            states[i] = value = cell(value, states[i])
        outputs.append(value)
    return torch.stack(outputs, 1)


def teacher_forced(rnn: nn.Module, x: Tensor) -> Tensor:
    state, outputs = None, []
    for t in range(x.shape[1]):
        output, state = rnn(x[:, t : t + 1], state)
        outputs.append(output)
    return torch.cat(outputs, 1)


def changed_between(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], pieces: int = 1
) -> Callable[..., Tensor]:
    """A fused LSTM fed ``pieces`` timesteps at a time, with ``change(h, c)`` in between."""

    def run(rnn: nn.Module, x: Tensor) -> Tensor:
        state, outputs = None, []
        for piece in x.split(pieces, 1):
            output, state = rnn(piece, state)
            outputs.append(output)
            state = change(*state)
        return torch.cat(outputs, 1)

    return run


def of_episodes(h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Both states masked, as policies do at the end of an episode; the first sequence's ends at every step."""
    going_on = torch.ones(h.shape[1], 1)
    going_on[0] = 0.0
    return h * going_on, c * going_on


def mostly_without_gradient(rnn: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        for _ in range(15):
            rnn(x)
    return rnn(x)[0]


def in_place(cell: nn.Module, x: Tensor) -> Tensor:
    """States in a list, changed in place afterwards."""
    states = [start(x)]
    for t in range(x.shape[1]):
        states.append(cell(x[:, t], states[-1]).clone())
        states[-1][:, 0] = 0
    return torch.stack(states[1:], 1)


def tapped(mix: nn.Module, x: Tensor, pass_on: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
    h, outputs = start(x), []
    for t in range(x.shape[1]):
        outputs.append(torch.tanh(mix(torch.cat([x[:, t], h], -1))))
        h = pass_on(tap(outputs[-1], "mine"))
    return torch.stack(outputs, 1)


def packed(rnn: nn.Module, x: Tensor) -> Tensor:
    output, _ = rnn(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False))
    assert isinstance(output, PackedSequence)
    return pad_packed_sequence(output, batch_first=True)[0]


def functional(rnn: nn.Module, x: Tensor) -> Tensor:
    weights = {name: parameter * 1.5 for name, parameter in rnn.named_parameters()}
    return torch.func.functional_call(rnn, weights, (x,))[0]


def frozen() -> nn.Module:
    return nn.LSTM(6, 8, batch_first=True).requires_grad_(False)


def parametrized(how: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    return lambda: how(nn.LSTM(6, 8, batch_first=True), "weight_hh_l0")


def lstm() -> nn.Module:
    return nn.LSTM(6, 8, batch_first=True)


def first(rnn: nn.Module, x: Tensor) -> Tensor:
    return rnn(x)[0]


EXACT, INEXACT, NOT_OBSERVED, NO_TIME = "exact", "inexact", "not observed", "no gradient through time"

WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor], str]] = {
    "a fused module": (lstm, first, EXACT),
    "a packed sequence": (lstm, packed, EXACT),
    "nn.RNNCell in a loop": (lambda: nn.RNNCell(6, 8), over_cell, EXACT),
    "nn.GRUCell in a loop": (lambda: nn.GRUCell(6, 8), over_cell, EXACT),
    "nn.LSTMCell in a loop": (lambda: nn.LSTMCell(6, 8), over_cell, EXACT),
    "cell states in a list, changed in place": (lambda: nn.GRUCell(6, 8), in_place, EXACT),
    "a cell of one's own, found by itself": (lambda: OwnCell(6, 8), over_cell, EXACT),
    "a cell of one's own that returns output and state": (lambda: OwnCellWithOutput(6, 8), with_output, EXACT),
    "states marked with tap": (lambda: nn.Linear(14, 8), tapped, EXACT),
    "nn.GRUCell in a loop, its states marked with tap as well": (
        lambda: nn.GRUCell(6, 8),
        lambda cell, x: over_cell(cell, x, lambda c, y, s: tap(c(y, s), "mine")),
        EXACT,
    ),
    "a scan, marked with tap_scan": (lambda: Gated(6, 8), lambda net, x: net(x), EXACT),
    "a scan with complex decays": (lambda: LRU(6, 8), lambda net, x: torch.cat([net(x), x[..., :2]], -1), EXACT),
    "a scan of which only the output is known": (
        lambda: HiddenLRU(6, 8),
        lambda net, x: torch.cat([net(x), x[..., :2]], -1),
        EXACT,
    ),
    "a selective scan, its output marked": (
        lambda: Selective(6),
        lambda net, x: torch.cat([net(x), x[..., :2]], -1),
        EXACT,
    ),
    "a scan from the end": (lambda: Backwards(6, 8), lambda net, x: net(x), EXACT),
    "a scan under checkpointing": (
        lambda: Gated(6, 8),
        lambda net, x: checkpoint(net, x, use_reentrant=False),
        EXACT,
    ),
    "a scan, compiled": (lambda: torch.compile(Gated(6, 8), backend="eager"), lambda net, x: net(x), EXACT),
    "a scan that the loss does not use": (lambda: Gated(6, 8), lambda net, x: net(x.detach()).detach() + x[..., :1], NOT_OBSERVED),
    "a fused module fed one timestep at a time": (lstm, teacher_forced, EXACT),
    "a fused module fed one timestep at a time, its state masked": (lstm, changed_between(of_episodes), EXACT),
    "a fused module fed one timestep at a time, h alone normalised": (
        lstm,
        changed_between(lambda h, c: (nn.functional.layer_norm(h, (8,)), c)),
        EXACT,
    ),
    "a fused module fed in chunks, its state stacked anew": (
        lstm,
        changed_between(lambda h, c: (torch.stack([h[0]]), torch.cat([c[..., :3], c[..., 3:]], -1)), 3),
        EXACT,
    ),
    "one module for encoding and decoding": (lstm, twice, EXACT),
    "truncated BPTT within a step": (lstm, truncated, EXACT),
    "truncated BPTT, the state carried from batch to batch": (lstm, carried, EXACT),
    "a subclass of nn.LSTMCell": (lambda: ResidualLSTMCell(6, 8), over_cell, EXACT),
    "two cells, one above the other": (lambda: nn.ModuleList([nn.GRUCell(6, 8), nn.RNNCell(8, 8)]), stacked, EXACT),
    "15 calls under no_grad and one that trains": (lstm, mostly_without_gradient, EXACT),
    "a subclass that packs in its own forward": (
        lambda: PackingLSTM(6, 8, batch_first=True),
        lambda rnn, x: rnn(x, LENGTHS)[0],
        EXACT,
    ),
    "a subclass that returns its own container": (
        lambda: ContainerGRU(6, 8, batch_first=True),
        lambda rnn, x: rnn(x).values,
        EXACT,
    ),
    "a subclass with a loop of its own": (lambda: LoopedGRU(6, 8, batch_first=True), first, EXACT),
    "a subclass with a loop of its own, masked past each sequence's end": (
        lambda: LoopedGRU(6, 8, batch_first=True),
        masked,
        EXACT,
    ),
    "a frozen module": (frozen, first, EXACT),
    "weight_norm": (parametrized(parametrizations.weight_norm), first, EXACT),
    "spectral_norm": (parametrized(parametrizations.spectral_norm), first, EXACT),
    "orthogonal": (parametrized(parametrizations.orthogonal), first, EXACT),
    "functional_call": (lstm, functional, EXACT),
    "activation checkpointing, not reentrant": (
        lstm,
        lambda rnn, x: checkpoint(lambda y: rnn(y)[0], x, use_reentrant=False),
        EXACT,
    ),
    "activation checkpointing, reentrant": (
        lstm,
        lambda rnn, x: checkpoint(lambda y: rnn(y)[0], x, use_reentrant=True),
        EXACT,
    ),
    "torch.compile of a fused module": (lambda: torch.compile(lstm(), backend="eager"), first, EXACT),
    "torch.compile of a cell": (lambda: torch.compile(nn.GRUCell(6, 8), backend="eager"), over_cell, EXACT),
    "an output changed in place": (lambda: nn.GRU(6, 8, batch_first=True), lambda rnn, x: rnn(x)[0].mul_(0.5), INEXACT),
    "an output that the loss does not use": (lstm, lambda rnn, x: torch.cat([rnn(x)[0].detach(), x[..., :0]], -1), NOT_OBSERVED),
    "cell.forward called directly": (
        lambda: nn.GRUCell(6, 8),
        lambda cell, x: over_cell(cell, x, lambda c, y, s: c.forward(y, s)),
        EXACT,
    ),
    "a scripted loop": (lambda: torch.jit.script(ScriptedLoop(6, 8)), lambda loop, x: loop(x), NOT_OBSERVED),
    "a state reset at every step": (
        lambda: nn.GRUCell(6, 8),
        lambda cell, x: over_cell(cell, x, lambda c, y, s: c(y)),
        NO_TIME,
    ),
    "a state detached at every step": (
        lambda: nn.GRUCell(6, 8),
        lambda cell, x: over_cell(cell, x, lambda c, y, s: c(y, s.detach())),
        NO_TIME,
    ),
    "a cell of one's own, its state detached at every step": (
        lambda: OwnCell(6, 8),
        lambda cell, x: over_cell(cell, x, lambda c, y, s: c(y, s.detach())),
        NO_TIME,
    ),
    "a fused module fed one timestep at a time, its state detached": (
        lstm,
        changed_between(lambda h, c: (h.detach(), c.detach())),
        NO_TIME,
    ),
    "a fused module fed one timestep at a time, its state never passed on": (
        lstm,
        lambda rnn, x: torch.cat([rnn(x[:, t : t + 1])[0] for t in range(x.shape[1])], 1),
        NO_TIME,
    ),
    "states marked with tap, detached": (lambda: nn.Linear(14, 8), lambda mix, x: tapped(mix, x, torch.detach), NO_TIME),
}  # fmt: skip


def model_of(way: str) -> pl.LightningModule:
    make, run, _ = WAYS[way]
    return Way(make, run)
