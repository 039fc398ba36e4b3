"""Every way of calling a recurrent network that is claimed to be exact, against the same model run by single cells under autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_gradwatch import GradWatch, load_run
from tests.integration.exact.real_calls import EXACT, WAYS, Way, first, model_of, over_cell, packed
from tests.models import sentences, trainer
from tests.oracles import cell_of
from tests.scan_models import Sequential

TOLERANCE = 1e-5
"""Relative to the largest norm of the profile, in float32."""

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*")

SCANS = [way for way in WAYS if way.startswith(("a scan", "a selective scan"))]

PLAINLY: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a subclass that packs in its own forward": packed,
    "a subclass that returns its own container": first,
    "a subclass with a loop of its own, masked past each sequence's end": packed,
    "functional_call": first,
    "activation checkpointing, not reentrant": first,
    "activation checkpointing, reentrant": first,
    "torch.compile of a fused module": first,
    "torch.compile of a cell": over_cell,
    "a scan under checkpointing": lambda net, x: net(x),
}
"""The same computation without what the way is about, for ways that a stand-in of the module cannot follow."""


class Unrolled(nn.Module):
    """Stands in for a fused module: every sequence by PyTorch's own cells, their states kept in the graph.

    Attributes:
        calls: of each forward with gradients, of each sequence, ``(h, c)`` by timestep; c is empty but for an LSTM.
    """

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self._module = [module]  # hidden from named_parameters
        self.calls: list[list[tuple[list[Tensor], list[Tensor]]]] = []

    def forward(self, source: Any, state: Any = None) -> tuple[Any, Any]:
        module = self._module[0]
        x, lengths = (pad_packed_sequence(source, True)) if isinstance(source, PackedSequence) else (source, None)
        h0, c0 = state if isinstance(state, tuple) else (state, None)
        made, outputs = [], []
        for j in range(len(x)):
            steps = int(lengths[j]) if lengths is not None else x.shape[1]
            one = unroll_in_graph(module, x[j, :steps], *(None if s is None else s[:, j] for s in (h0, c0)))
            made.append(one)
            rows = torch.cat(one[0])
            outputs.append(torch.cat([rows, rows.new_zeros(x.shape[1] - steps, rows.shape[1])]))
        if torch.is_grad_enabled():
            self.calls.append(made)
        output: Any = torch.stack(outputs)
        if lengths is not None:
            output = pack_padded_sequence(output, lengths, batch_first=True, enforce_sorted=False)
        h_n, c_n = (torch.stack([h[which][-1][0] for h in made])[None] if made[0][which] else None for which in (0, 1))
        return output, (h_n, c_n) if isinstance(module, nn.LSTM) else h_n


def unroll_in_graph(module: nn.RNNBase, x: Tensor, h0: Tensor | None, c0: Tensor | None) -> tuple[list, list]:
    """As the oracle of the unit tests does it, but with input and initial state left in the graph."""
    step = cell_of(module, 0, 0)
    h = x.new_zeros(1, module.hidden_size) if h0 is None else h0
    c = x.new_zeros(1, module.hidden_size) if c0 is None else c0
    states, cells = [], []
    for row in x:
        h, c = step(row[None], h, c)
        h = h if h.requires_grad else h.requires_grad_()
        states.append(h)
        cells.append(c)
    return states, cells if isinstance(module, nn.LSTM) else []


class Noted(nn.Module):
    """Stands in for a cell: passes its calls on and keeps the states that it made, in the graph."""

    def __init__(self, cell: nn.Module, state: int | None) -> None:
        super().__init__()
        self.cell, self.state = cell, state
        self.h: list[Tensor] = []
        self.c: list[Tensor] = []

    def forward(self, *args: Any) -> Any:
        made = self.cell(*args)
        states = made if isinstance(made, tuple) else (made,)
        self.h.append(states[self.state or 0])
        if self.state is None and len(states) > 1:
            self.c.append(states[1])
        return made


def tapped_by_hand(mix: nn.Module, x: Tensor, made: list[Tensor]) -> Tensor:
    """The recurrence of the way with ``tap``, without it; its states are added to ``made``."""
    h = x.new_zeros(len(x), 8)
    for t in range(x.shape[1]):
        h = torch.tanh(mix(torch.cat([x[:, t], h], -1)))
        made.append(h)
    return torch.stack(made, 1)


Sequence = tuple[list[Tensor], list[Tensor], slice]
"""The states ``(h, c)`` of one sequence by timestep, and its rows in them."""


def sequences_of(way: str, model: Way, weights: list[Tensor], words: Tensor) -> tuple[Tensor, list[list[Sequence]]]:
    """The loss of the model run by single cells, and the states of each call and sequence."""
    run = PLAINLY.get(way, WAYS[way][1])
    module = getattr(model.rnn, "_orig_mod", model.rnn)
    if isinstance(module, nn.RNNBase):
        unrolled = Unrolled(plain(module, weights))
        model.rnn, model.run = unrolled, run
        loss = model.loss(words, 0)
        return loss, [[(h, c, slice(0, 1)) for h, c in call] for call in unrolled.calls]
    if way in SCANS:
        net = getattr(model.rnn, "_orig_mod", model.rnn)
        net.scan = one_by_one = Sequential()
        model.run = lambda _, x: run(net, x)
        loss = model.loss(words, 0)
        states = [(one_by_one.states, [])]
    elif way == "states marked with tap":
        made: list[Tensor] = []
        model.run = lambda mix, x: tapped_by_hand(mix, x, made)
        loss = model.loss(words, 0)
        states = [(made, [])]
    else:
        own_state = None if isinstance(module, nn.RNNCellBase) else 1 if "output and state" in way else 0
        several = isinstance(module, nn.ModuleList)
        noted = [Noted(cell, 0 if several else own_state) for cell in (module if several else [module])]
        model.rnn, model.run = nn.ModuleList(noted) if several else noted[0], run
        if isinstance(module, nn.LSTMCell):
            model.run = lambda stand_in, x: over_cell(module, x, lambda _, row, state: stand_in(row, state))
        loss = model.loss(words, 0)
        states = [(cell.h, cell.c) for cell in noted]
    return loss, [[(h, c, slice(j, j + 1)) for j in range(len(words))] for h, c in states]


def plain(module: nn.RNNBase, weights: list[Tensor]) -> nn.RNNBase:
    """A module of PyTorch's own with the weights that the real one computed with, whatever made them."""
    kind = next(base for base in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, base))
    made = kind(module.input_size, module.hidden_size, batch_first=True)
    made.load_state_dict(dict(zip(made.state_dict(), weights, strict=True)))
    return made


def note_weights(module: nn.Module) -> list[Tensor]:
    """Filled with copies of the weights of a fused module's first forward. (To read those of spectral_norm changes them.)"""
    weights: list[Tensor] = []

    def note(module: nn.RNNBase, args: Any, output: Any) -> None:
        weights.extend(weight.detach().clone() for weight in ([] if weights else module._flat_weights))

    if isinstance(module, nn.RNNBase):
        module.register_forward_hook(note)
    return weights


def joined(calls: list[list[Sequence]], count: int) -> list[list[Sequence]]:
    """Calls that continue one another as one, where that is how they were recorded."""
    if len(calls) == count:
        return calls
    assert count == 1
    return [
        [
            ([h for s in same for h in s[0]], [c for s in same for c in s[1]], same[0][2])
            for same in zip(*calls, strict=True)
        ]
    ]


def truth(loss: Tensor, sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Total gradients by timestep, and the last state's direct loss by lag, of one sequence."""
    h, c, rows = sequence

    def norms(found: Any, states: list[Tensor]) -> np.ndarray:
        rows_of = [torch.zeros_like(s[rows]) if g is None else g[rows] for g, s in zip(found, states, strict=True)]
        return np.array([float(g.abs().double().norm()) for g in rows_of])

    total = torch.autograd.grad(loss, h, retain_graph=True)
    sent = h[-1][rows], total[-1][rows]  # at the last step, direct and total are the same thing

    def back(states: list[Tensor]) -> np.ndarray:
        return norms(torch.autograd.grad(sent[0], states, sent[1], retain_graph=True, allow_unused=True), states)

    lagged = np.hypot(back(h), back(c)) if c else back(h)
    return norms(total, h), lagged[::-1] / lagged[-1]


def seeded(way: str) -> Way:
    torch.manual_seed(3)
    return model_of(way)


# A scan from the end is compared with autograd among the unit tests.
def within_episode(curve: np.ndarray) -> np.ndarray:
    """Up to where a mask has ended the sequence: what lies before is no part of it."""
    return curve[: np.argmax(curve == 0)] if (curve == 0).any() else curve


@pytest.mark.parametrize(
    "way", [way for way, (_, _, claimed) in WAYS.items() if claimed == EXACT and way != "a scan from the end"]
)
def test_what_is_called_exact_is_what_autograd_has(way: str, tmp_path) -> None:
    """Total gradients of every sequence, and the lagged curve, agree to 1e-5 with the model run by single cells."""
    torch._dynamo.reset()
    before, model = (seeded(way) for _ in range(2))
    weights = note_weights(getattr(model.rnn, "_orig_mod", model.rnn))
    model.lr = 0.0  # so that a cell that is found on the first step is measured with known weights on the second
    watch = GradWatch(anchors=1, max_sequences=None, keep_sequences=True, dirpath=tmp_path / "run", summary=False)
    data = sentences(16)
    trainer(tmp_path, [watch], max_steps=2).fit(model, data)
    records = [r for r in load_run(tmp_path / "run").profile_records if r["state"] == "h"]
    (words,) = list(data)[records[0]["batch_idx"]]
    loss, calls = sequences_of(way, before, weights, words)
    calls = joined(calls, len(records))
    for record, call in zip(records, calls, strict=True):
        assert record["exact"]
        expected = [truth(loss, sequence) for sequence in call]
        order = sorted if "packs" in way else list  # what packs by itself shows its sequences in its own order
        largest = max(float(total.max()) for total, _ in expected)
        for found, (total, _) in zip(
            order(record["total_by_sequence"]),
            order(expected, key=lambda e: list(e[0])) if order is sorted else expected,
            strict=True,
        ):
            assert len(found) == len(total)
            assert np.abs(np.array(found) - total).max() <= TOLERANCE * largest
        curves = [within_episode(curve) if "masked" in way else curve for _, curve in expected]
        longest = max(map(len, curves))
        by_lag = [np.median([curve[k] for curve in curves if len(curve) > k]) for k in range(longest)]
        assert np.abs(np.array(record["lagged"]) - by_lag).max() <= TOLERANCE * max(by_lag)
