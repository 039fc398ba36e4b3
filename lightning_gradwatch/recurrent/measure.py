"""From a recurrent call to its profiles: one for each layer, direction and state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.forward import Saturation
from lightning_gradwatch.padding import find_ends
from lightning_gradwatch.profile import Floats, Profile
from lightning_gradwatch.recurrent import equal_ends
from lightning_gradwatch.recurrent.anchors import Anchors, lags
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.cell_gates import look_at_gates
from lightning_gradwatch.recurrent.direction import DirectionSweep
from lightning_gradwatch.recurrent.gates import SUSPICIOUS
from lightning_gradwatch.recurrent.layout import DIRECTIONS, REVERSE, Layout
from lightning_gradwatch.recurrent.loop import Loop, loop_profiles
from lightning_gradwatch.recurrent.sweep import CHUNK, Sweep, sweep


def measure_calls(calls: Sequence[RecurrentCall | Loop], max_sequences: int | None, anchors: int) -> list[Profile]:
    """The profiles of all calls and loops of a step, after its backward pass.

    Args:
        max_sequences: of each batch; None takes all.
        anchors: of each sequence of a fused call.
    """
    found: list[Profile] = []
    for call in calls:
        if isinstance(call, Loop):
            found += _with_gates(call, loop_profiles(call, max_sequences))
        else:
            chunk = _chunk(call, max_sequences)
            swept = sweep(call, max_sequences=max_sequences, anchors=anchors, chunk=chunk)
            found += profiles(call, swept, _saturation(call, swept, max_sequences, chunk))
    return found


def _with_gates(loop: Loop, found: list[Profile]) -> list[Profile]:
    share, saturation = look_at_gates(loop, found[0].sequences)
    return [replace(profile, gate_gradient=share, saturation=saturation) for profile in found]


def _chunk(call: RecurrentCall, max_sequences: int | None) -> int:
    """Timesteps that a sweep holds at once: fewer where it takes all of a large batch, so that it needs no more memory."""
    batch = call.h_n.shape[1] if call.h_n.dim() == 3 else 1
    return CHUNK if max_sequences is not None else max(CHUNK * 64 // max(batch, 64), 16)


def learns(call: RecurrentCall) -> bool:
    """Whether any of its weights is trained."""
    return any(weight.requires_grad for weight in call.weights)


Saturations = list[list[Saturation | None]]
"""By layer and direction."""


def _saturation(call: RecurrentCall, swept: Sweep, max_sequences: int | None, chunk: int) -> Saturations | None:
    """A closer look at the gates, where hardly any gradient reaches them; None elsewhere."""
    shares = [one.gate_share() for pair in swept.directions for one in pair]
    if not learns(call) or not any(share is not None and share < SUSPICIOUS for share in shares):
        return None
    again = sweep(call, max_sequences=max_sequences, anchors=0, chunk=chunk, saturation=True)
    return [[None if one.gate_count is None else one.gate_count.result() for one in pair] for pair in again.directions]


def profiles(call: RecurrentCall, swept: Sweep, saturation: Saturations | None = None) -> list[Profile]:
    """The profiles of a swept call, lowest layer first; for an LSTM one of h and one of c, which share the lagged curves."""
    found: list[Profile] = []
    truncated = is_cut_off(call.h0) or is_cut_off(call.c0)
    runs = equal_ends.of_call(call, swept.layout, CHUNK)
    from_loss = [_by_time(_sent(one), swept.layout, d) for d, one in enumerate(swept.directions[-1])]
    for layer, pair in enumerate(swept.directions):
        for direction, one in enumerate(pair):
            states = [("h", one.total, one.direct)]
            if one.total_cell is not None and one.direct_cell is not None:
                states.append(("c", one.total_cell, one.direct_cell))
            curves = _lag_curves(one, swept.layout, swept.anchors, direction)
            top = layer == len(swept.directions) - 1
            ends = find_ends(
                *runs,
                reverse=direction == REVERSE,
                lengths=tuple(swept.layout.lengths.tolist()),
                # To what lies below the top of a bidirectional stack, the loss comes by both directions.
                sent=from_loss[direction] if top else sum(from_loss[1:], start=from_loss[0]),
            )
            for state, total, direct in states:
                found.append(
                    Profile(
                        module=call.module,
                        call=call.index,
                        kind=call.shape.kind,
                        layer=layer,
                        direction=DIRECTIONS[direction],
                        state=state,
                        timesteps=swept.layout.timesteps,
                        batch_size=swept.layout.batch_size,
                        sequences=tuple(swept.layout.sequences),
                        lengths=tuple(swept.layout.lengths.tolist()),
                        total=_by_time(total[:, 0], swept.layout, direction),
                        direct=_by_time(direct, swept.layout, direction),
                        curves=curves,
                        inexact_reason=swept.inexact_reason,
                        layers=call.shape.num_layers,
                        truncated=truncated,
                        ends=ends,
                        gate_gradient=one.gate_share() if learns(call) else None,
                        saturation=None if saturation is None else saturation[layer][direction],
                    )
                )
    return found


def _sent(one: DirectionSweep) -> Tensor:
    """Norms of all that comes from outside the recurrence ``(time, sequence)``."""
    return one.direct if one.direct_cell is None else one.direct + one.direct_cell


def is_cut_off(state: Tensor | None) -> bool:
    """Whether an initial state says something and yet comes without a graph: then what made it is out of the gradient's reach."""
    return state is not None and not state.requires_grad and bool(state.detach().any())


def _by_time(norms: Tensor, layout: Layout, direction: int) -> Floats:
    """``(time, sequence)`` in own order → ``(sequence, time)`` as the caller counts, NaN past the end."""
    times = layout.times(direction, 0, layout.timesteps)
    valid = layout.valid(0, layout.timesteps)
    placed = torch.full_like(norms, torch.nan)
    own, sequence = torch.nonzero(valid, as_tuple=True)
    placed[times[own, sequence], sequence] = norms[own, sequence]
    return placed.T.contiguous().numpy()


def _lag_curves(sweep: DirectionSweep, layout: Layout, anchors: Anchors, direction: int) -> Floats:
    """``(curve, lag)``: each anchor's gradient by lag over that at lag 0; anchors whose own gradient is 0 are left out."""
    norms = sweep.total[:, 1:]
    if sweep.total_cell is not None:
        norms = torch.hypot(norms, sweep.total_cell[:, 1:])  # an LSTM's state is h and c together
    curves: list[Tensor] = []
    for a in range(len(anchors)):
        for j, length in enumerate(layout.lengths.tolist()):
            timestep = int(anchors.timestep[a, j])
            if timestep < 0:
                continue
            reach = lags(timestep, length, direction)
            curve = norms[:reach, a, j].flip(0)
            if curve[0] != 0:
                curves.append(curve / curve[0])
    longest = max((len(curve) for curve in curves), default=0)
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = np.nan_to_num(curve.numpy(), nan=np.inf, posinf=np.inf)
    return table
