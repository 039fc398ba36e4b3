"""What is true of one training step: the model unrolled with PyTorch's own cells in float64, and autograd."""

# Over 300 lines: one unrolled model and the facts that are read from it.
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.oracles import cell_of

RATIO = 0.01
"""Under this share a gradient counts as gone."""

MEASURED = 8
"""Sequences that ``GradWatch`` measures at most; of more, some that it chooses."""

LayerWeights = tuple[str, int, str]
"""Module, layer, direction."""


@dataclass
class Path:
    """The states of one layer and direction in the autograd graph, in the direction's own order.

    Args:
        states: of every own step, the tensors ``(batch, …)`` that together are the recurrent state: h, or h and c.
        exits: of every own step, what leaves the recurrence there; the loss sends each a direct gradient.
        sent: of every own step, what of this layer and direction the loss, or the layer above, sees.
        lengths: of the sequences; none where all have the same.
        entries: of every own step, zeros that were added to the gates' pre-activations.
    """

    states: list[list[Tensor]] = field(default_factory=list)
    exits: list[list[Tensor]] = field(default_factory=list)
    sent: list[list[Tensor]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    entries: list[Tensor] = field(default_factory=list)


class Unrolled(nn.Module):
    """Stands in for a fused module: the same weights and signature, step by step with PyTorch's own cells."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.module = module
        self.calls: list[dict[tuple[int, str], Path]] = []
        self._forward_hooks.update(module._forward_hooks)  # the user's own, which may change what comes out

    def forward(self, x: Any, hx: Any = None) -> tuple[Any, Any]:
        """As the module's."""
        m, packed = self.module, isinstance(x, PackedSequence)
        if packed:
            padded, lengths = pad_packed_sequence(x, batch_first=False)
        else:
            padded = x.transpose(0, 1) if m.batch_first else x
            lengths = torch.full((padded.shape[1],), len(padded))
        out, h_n, c_n, paths = self._run(padded, lengths, hx)
        self.calls.append(paths)
        if packed:
            out = pack_padded_sequence(out, lengths, batch_first=False, enforce_sorted=False)
        elif m.batch_first:
            out = out.transpose(0, 1)
        return out, (h_n, c_n) if m.mode == "LSTM" else h_n

    def _run(self, x: Tensor, lengths: Tensor, hx: Any) -> tuple[Tensor, Tensor, Tensor, dict[tuple[int, str], Path]]:
        m = self.module
        lstm, directions = m.mode == "LSTM", 1 + m.bidirectional
        h0, c0 = (hx if lstm else (hx, None)) if hx is not None else (None, None)
        steps, batch = x.shape[:2]
        own = torch.arange(steps)[:, None]
        back = torch.where(own < lengths, lengths - 1 - own, own)  # its own inverse
        paths: dict[tuple[int, str], Path] = {}
        last_h: list[Tensor] = []
        last_c: list[Tensor] = []
        below = x
        for layer in range(m.num_layers):
            outs: list[Tensor] = []
            for direction in range(directions):
                fed = below.gather(0, back[..., None].expand_as(below)) if direction else below
                index = layer * directions + direction
                h = x.new_zeros(batch, m.hidden_size) if h0 is None else h0[index]
                c = x.new_zeros(batch, m.hidden_size) if c0 is None else c0[index]
                step, path = _Cell(m, layer, direction), Path(lengths=lengths.tolist())
                for t in range(steps):
                    entry = x.new_zeros(batch, step.gates, requires_grad=True)
                    new_h, new_c = step(fed[t], entry, h, c)
                    valid = (t < lengths)[:, None]
                    h, c = torch.where(valid, new_h, h), torch.where(valid, new_c, c) if lstm else c
                    h.requires_grad_(True)
                    path.states.append([h, new_c] if lstm else [h])  # of new_c h is made
                    path.entries.append(entry)
                    path.exits.append([h * 1.0, c * 1.0] if lstm else [h * 1.0])
                stacked = torch.stack([one[0] for one in path.exits])
                outs.append(stacked.gather(0, back[..., None].expand_as(stacked)) if direction else stacked)
                at_end = (lengths - 1)[None, :, None].expand(1, batch, m.hidden_size)
                # The final states leave by exits of their own, so that what the layer above sends is not taken for the loss's.
                leaving = [[s * 1.0 for s in states] for states in path.states]
                last_h.append(torch.stack([one[0] for one in leaving]).gather(0, at_end)[0])
                if lstm:
                    last_c.append(torch.stack([one[1] for one in leaving]).gather(0, at_end)[0])
                path.exits = [[out[0], *end] for out, end in zip(path.exits, leaving, strict=True)]
                path.sent = path.exits
                paths[layer, ("forward", "reverse")[direction]] = path
            below = torch.cat(outs, -1)
        _share_exits(paths, m.num_layers, directions)
        valid = (own < lengths)[..., None]
        return torch.where(valid, below, 0.0), torch.stack(last_h), torch.stack(last_c) if lstm else below, paths


class _Cell:
    """PyTorch's own cell, with zeros added to its pre-activations: as further inputs whose weights are the identity."""

    def __init__(self, module: nn.RNNBase, layer: int, direction: int) -> None:
        suffix = f"l{layer}" + ("_reverse" if direction else "")
        named = {name.removesuffix("_" + suffix): w for name, w in module.named_parameters() if name.endswith(suffix)}
        self.gates = len(named["weight_ih"])
        wide = copy.deepcopy(module)
        for name in list(wide._parameters):
            if name == f"weight_ih_{suffix}":
                weight = named["weight_ih"].detach()
                wide._parameters[name] = nn.Parameter(torch.cat([weight, torch.eye(self.gates).to(weight)], 1))
        self._step = cell_of(wide, layer, direction)

    def __call__(self, x: Tensor, entry: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Any]:
        return self._step(torch.cat([x, entry], 1), h, c)


def _share_exits(paths: dict[tuple[int, str], Path], layers: int, directions: int) -> None:
    """What the loss sends in at a timestep goes down the whole stack: lower layers have the exits of the top one, and final states."""
    for layer in range(layers - 1):
        for direction in ("forward", "reverse")[:directions]:
            path, top = paths[layer, direction], paths[layers - 1, direction]
            path.exits = [[*out, *own[1:]] for out, own in zip(top.exits, path.exits, strict=True)]
            if directions == 2:
                other = paths[layers - 1, "reverse" if direction == "forward" else "forward"]
                path.exits = [[*own, *out] for own, out in zip(path.exits, other.exits[::-1], strict=True)]


class Recorded(nn.Module):
    """Stands in for a cell, and keeps the states that it makes."""

    def __init__(self, cell: nn.Module, state_of: Callable[[Any], list[Tensor]]) -> None:
        super().__init__()
        self.cell, self.state_of = cell, state_of
        self.path = Path()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the cell's."""
        made = self.cell(*args, **kwargs)
        states = self.state_of(made)
        self.path.states.append(states)
        self.path.exits.append(states[:1])
        return made


@dataclass
class Facts:
    """One place at one step. Lists are in the direction's own order; per-sequence values are ``[sequence]``.

    Args:
        timesteps: of the longest sequence.
        total: the norm of ∂L/∂h ``[sequence][own step]``.
        joint: that of the gradient of all states together, h and c of an LSTM.
        curves: lagged gradients, one for each anchor and sequence, each beginning at 1.
        gates: Σ|∂L/∂a| over all pre-activations a, over Σ|∂L/∂h| of what arrives directly; None where there are none to see.
    """

    timesteps: int
    total: list[list[float]]
    joint: list[list[float]]
    curves: list[list[float]]
    gates: float | None

    @property
    def fed(self) -> list[list[float]]:
        """The sequences that get any gradient."""
        return [row for row in self.total if any(row)]

    @property
    def reached(self) -> tuple[int, int]:
        """The least and the most, over sequences, of the own steps up to the last that gets a gradient."""
        found = [max(t for t, norm in enumerate(row) if norm) + 1 for row in self.fed]
        return (min(found), max(found)) if found else (0, 0)

    @property
    def starving(self) -> tuple[int, int]:
        """The least and the most, over sequences, of the own first steps at which all states' gradient is under 1 % of the largest."""
        fed = [row for row in self.joint if any(row)]
        found = [next(t for t, norm in enumerate(row) if norm >= RATIO * max(row)) for row in fed]
        return (min(found), max(found)) if found else (0, 0)

    def bounds(self) -> tuple[list[float], list[float]]:
        """Between which two curves the median over any of the anchors and sequences lies. One curve twice if there is no choice."""
        longest = max(map(len, self.curves), default=0)
        by_lag = [[curve[k] for curve in self.curves if k < len(curve)] for k in range(longest)]
        if len(self.curves) <= len(self.fed) <= MEASURED:
            middle = [_median(found) for found in by_lag]
            return middle, middle
        return [min(found) for found in by_lag], [max(found) for found in by_lag]

    @property
    def horizon(self) -> tuple[float, float]:
        """The least and the largest that the horizon may be; inf where the sequence cuts it off."""
        low, high = self.bounds()
        return _horizon(low), _horizon(high)

    @property
    def growth(self) -> tuple[float, float]:
        """The same of the largest lagged gradient."""
        low, high = self.bounds()
        return max(low, default=0.0), max(high, default=0.0)

    @property
    def rate(self) -> tuple[float, float] | None:
        """The same of the slope of its logarithm, as the single curves have it."""
        low, high = self.bounds()
        curves = [low] if low == high else self.curves
        found = [slope for curve in curves if (slope := _slope(curve)) is not None]
        return (min(found), max(found)) if found else None

    @property
    def severed(self) -> bool:
        """Whether nothing at all flows from one step to the one before it."""
        return self.timesteps > 1 and bool(self.curves) and all(not any(curve[1:]) for curve in self.curves)


def joined(paths: Sequence[Path]) -> Path:
    """Calls of one timestep each, as one sequence."""
    whole = Path(lengths=[len(paths)] * len(paths[0].lengths))
    for path in paths:
        whole.states += path.states
        whole.exits += path.exits
        whole.sent += path.sent
        whole.entries += path.entries
    return whole


def facts_of(path: Path, loss: Tensor) -> Facts:
    """Of one place, from a loss in the graph of its states."""
    batch = path.states[0][0].shape[0]
    lengths = path.lengths or [len(path.states)] * batch
    each = [[_rows(g) for g in _grad(loss, list(one))] for one in zip(*path.states, strict=True)]
    total = each[0]
    direct = [_grad(loss, exits) for exits in path.exits]
    curves: list[list[float]] = []
    anchors = [t for t in range(len(total)) if any(bool(d.any()) for d in direct[t])]
    if all(exits[0] is states[0] for exits, states in zip(path.exits, path.states, strict=True)):
        anchors = anchors[-1:]  # states and exits are one: only at the last is what arrives the loss's alone
    for t in anchors:
        curves += _lagged(path, t, direct[t], batch, lengths)
    rows = [[float(total[t][b]) for t in range(lengths[b])] for b in range(batch)]
    joint = [[math.hypot(*(float(one[t][b]) for one in each)) for t in range(lengths[b])] for b in range(batch)]
    gates = None
    if path.entries:
        arrives = sum(float(g.abs().sum()) for sent in path.sent for g in _grad(loss, sent))
        reaches = sum(float(g.abs().sum()) for g in _grad(loss, path.entries))
        gates = reaches / arrives if arrives else None
    return Facts(len(total), rows, joint, curves, gates)


def _lagged(path: Path, t: int, sent: list[Tensor], batch: int, lengths: list[int]) -> list[list[float]]:
    source = sum(((d * e).sum() for d, e in zip(sent, path.exits[t], strict=True)), torch.zeros(()))
    at = path.states[: t + 1]
    found = _grad(source, [s for states in at for s in states])
    width = len(at[0])
    norms = [
        torch.stack([_rows(g) for g in found[i * width : (i + 1) * width]]).pow(2).sum(0).sqrt() for i in range(t + 1)
    ]
    curves = []
    for b in range(batch):
        first = float(norms[t][b])
        if t < lengths[b] and first > 0:
            curves.append([float(norms[t - k][b]) / first for k in range(t + 1)])
    return curves


def _grad(source: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not source.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    wanted = [t for t in tensors if t.requires_grad]
    found = iter(torch.autograd.grad(source, wanted, retain_graph=True, allow_unused=True)) if wanted else iter(())
    made = [next(found) if t.requires_grad else None for t in tensors]
    return [torch.zeros_like(t) if g is None else g.detach() for t, g in zip(tensors, made, strict=True)]


def _rows(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).norm(dim=1)


def _median(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _horizon(curve: list[float]) -> float:
    return next((float(lag) for lag, ratio in enumerate(curve) if ratio < RATIO), math.inf)


def _slope(curve: list[float]) -> float | None:
    count = next((lag for lag, ratio in enumerate(curve) if not 1e-30 < ratio < math.inf), len(curve))
    if count < 2:
        return None
    lags = [k - (count - 1) / 2 for k in range(count)]
    return sum(k * math.log(r) for k, r in zip(lags, curve, strict=False)) / sum(k * k for k in lags)
