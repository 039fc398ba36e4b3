"""The gates of a loop over a cell: what share of the gradient reaches them,
and how far they are saturated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.forward import Saturation
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import Adjoint, make_adjoint
from lightning_gradwatch.recurrent.loop import Loop, LoopState
from lightning_gradwatch.recurrent.measure.gates import GateCount
from lightning_gradwatch.recurrent.measure.gradient_norm import local
from lightning_gradwatch.recurrent.shape import Shape
from lightning_gradwatch.thresholds import SUSPICIOUS_SHARE

_MODES = {"RNN": ("RNN_TANH", "RNN_RELU"), "LSTM": ("LSTM",), "GRU": ("GRU",)}
_GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
_CLOSE = 1e-3
"""By how much a recomputed state may differ from the recorded one, relative to the
largest: under autocast it is rounded.
"""

_NOTHING = 1e-12
"""Weights whose gradients are under this share of the states' get none."""

Gates = tuple[float | None, Saturation | None]
"""The share, and the closer look where it is small; None where they are not known."""


@dataclass(frozen=True, slots=True)
class _Steps:
    """All steps of the chosen sequences at once, each a row, those of one timestep side by side.
    ``c`` and ``to_c`` of an LSTM only.
    """

    sequences: int
    x: axes.Float[Tensor, "row input"]
    h: axes.Float[Tensor, "row hidden"]
    c: axes.Float[Tensor, "row hidden"] | None
    made: axes.Float[Tensor, "row hidden"]
    to_h: axes.Float[Tensor, "row hidden"]
    to_c: axes.Float[Tensor, "row hidden"] | None


@torch.no_grad()
def look_at_gates(loop: Loop, sequences: Sequence[int]) -> Gates:
    """Of one of PyTorch's own cells from its inputs and states. Of another one no more is known
    than whether its weights get a gradient.
    """
    if not any(weight.requires_grad for _, weight in loop.weights) or loop.weights_changed():
        return None, None
    steps = _steps(loop, sequences)
    for mode in _MODES.get(loop.kind, ()) if steps is not None else ():
        adjoint = _adjoint(loop, mode, steps) if steps is not None else None
        gates = None if adjoint is None or steps is None else _of_cell(adjoint, steps)
        if gates is not None:
            return gates
    return (0.0 if _weights_get_nothing(loop) else None), None


def _steps(loop: Loop, sequences: Sequence[int]) -> _Steps | None:
    """None where the steps do not have inputs and states of one shape."""
    inputs = [x for x in loop.inputs if x is not None]
    states = [state.tensor for state in loop.states]
    if (
        loop.kind not in _MODES
        or len(inputs) != len(loop.h)
        or (loop.kind == "LSTM") != (loop.c_is_total and bool(loop.c))
    ):
        return None
    if len({loop.rows(x).shape for x in inputs}) != 1 or len({loop.rows(state).shape for state in states}) != 1:
        return None
    if len(loop.rows(inputs[0])) != len(loop.rows(states[0])):
        return None
    dtype, chosen = loop.weights[0][1].dtype, torch.tensor(sequences, device=states[0].device)

    def rows(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([loop.rows(tensor)[chosen].to(dtype) for tensor in tensors])

    return _Steps(
        len(sequences),
        x=rows(inputs),
        h=rows(_before(loop, "h", loop.h)),
        c=rows(_before(loop, "c", loop.c)) if loop.c else None,
        made=rows(state.tensor for state in loop.h),
        to_h=rows(map(_gradient, loop.h)),
        to_c=rows(map(_gradient, loop.c)) if loop.c else None,
    )


def _before(loop: Loop, name: str, states: list[LoopState]) -> Iterator[Tensor]:
    """The states that went into each step; zeros where none was given."""
    before = torch.zeros_like(states[0].tensor)
    for t, state in enumerate(states):
        yield dict(loop.steps[t].given).get(name, before)
        before = state.tensor


def _gradient(state: LoopState) -> Tensor:
    value = state.slot.value()
    return torch.zeros_like(state.tensor) if value is None else value


def _adjoint(loop: Loop, mode: str, steps: _Steps) -> Adjoint[Any] | None:
    """Of a cell with the weights of one of PyTorch's; None if they are others."""
    weights = {name.rpartition(".")[2]: weight for name, weight in loop.weights}
    names = ["weight_ih", "weight_hh", *(name for name in ("bias_ih", "bias_hh") if name in weights)]
    hidden = steps.h.shape[-1]
    if set(names) != set(weights) or len(names) % 2:
        return None
    if [tuple(weights[name].shape) for name in names[:2]] != [
        (_GATES[loop.kind] * hidden, steps.x.shape[-1]),
        (_GATES[loop.kind] * hidden, hidden),
    ]:
        return None
    shape = Shape(mode, 1, 1, hidden, hidden, len(names) == 4, 0.0, False)
    return make_adjoint(tuple(weights[name] for name in names), shape, steps.x.dtype)


def _of_cell(adjoint: Adjoint[Any], steps: _Steps) -> Gates | None:
    """None if the recorded states are not what such a cell makes."""
    x, h = steps.x[None], steps.h[None]
    factors = adjoint.prepare(x, h, steps.c)
    made, cell = adjoint.recomputed(factors)
    if not _agree(made[0], steps.made):
        return None
    to_h, to_c = steps.to_h[None, None], None if steps.to_c is None else steps.to_c[None, None]
    delta = adjoint.input_delta(factors, to_h, to_c)
    sent = float(_sent(adjoint, factors, steps, to_h, delta).abs().sum())
    if not sent:
        return None, None
    share = float(delta.abs().sum()) / sent
    if not share < SUSPICIOUS_SHARE:
        return (share if math.isfinite(share) else None), None
    count = GateCount(adjoint)
    count.add(x, h, cell, torch.ones(x.shape[:2], dtype=torch.bool))
    return share, count.result()


def _agree(again: axes.Float[Tensor, "row hidden"], made: axes.Float[Tensor, "row hidden"]) -> bool:
    return float((again - made).abs().max()) <= _CLOSE * max(float(made.abs().max()), 1e-30)


def _sent(
    adjoint: Adjoint[Any],
    factors: Any,
    steps: _Steps,
    to_h: axes.Float[Tensor, "1 1 row hidden"],
    delta: axes.Float[Tensor, "1 1 row gated"],
) -> axes.Float[Tensor, "row hidden"]:
    """What the loss sends to each state: its gradient without what came back from the step after
    it.
    """
    carried = adjoint.recurrent_delta(factors, to_h, delta)[0, 0].matmul(adjoint.weights.w_hh)
    if adjoint.shape.mode == "GRU":
        carried = carried + steps.to_h * factors.z[0]
    sent = steps.to_h.clone()
    sent[: -steps.sequences] -= carried[steps.sequences :]
    return sent


def _weights_get_nothing(loop: Loop) -> bool:
    """Whether all gradients of the weights are next to 0 while the states get some."""
    largest = max(float(_gradient(state).abs().max()) for state in loop.h)
    return get_nothing([weight for _, weight in loop.weights], largest)


def get_nothing(weights: Iterable[Tensor], largest: float) -> bool:
    """Whether weights have gradients, all of them next to 0 beside the largest one of a state."""
    gradients = [local(weight.grad) for weight in weights if weight.is_leaf and weight.grad is not None]
    return bool(gradients) and max(float(g.abs().max()) for g in gradients) < _NOTHING * largest < math.inf
