"""From a loop to its profiles: one for each state."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.padding import find_ends
from lightning_gradwatch.profile import Floats, Profile
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.graph.between import come_from_itself
from lightning_gradwatch.recurrent.initial_state import is_handed_over
from lightning_gradwatch.recurrent.layout import pick_sequences
from lightning_gradwatch.recurrent.loop import Loop, LoopState
from lightning_gradwatch.recurrent.measure import equal_ends
from lightning_gradwatch.recurrent.measure.anchors import norm, too_small
from lightning_gradwatch.recurrent.measure.resets import episodes_of_loop, without_earlier_episodes
from lightning_gradwatch.thresholds import FLOOR


@torch.no_grad()
def loop_profiles(loop: Loop, max_sequences: int | None) -> list[Profile]:
    """The profiles of a loop's states, one each. They have no direct part: a hook on
    the state sees the total only.

    Where the batch changes in size from step to step, a row is taken for the same sequence as long
    as it is there. Measured are the sequences that the first step has; the lags, of those that the
    last one still has.
    """
    rows = [len(loop.rows(state.tensor)) for state in loop.h]
    reached = _reached(loop, rows[0])
    sequences = pick_sequences(reached, max_sequences)
    lengths = [next((t for t, count in enumerate(rows) if count <= j), len(rows)) for j in sequences]
    series = [(name, states) for name, states in loop.series if [len(loop.rows(s.tensor)) for s in states] == rows]
    runs = equal_ends.of_steps(
        [None if x is None or x.dim() < 2 else loop.rows(x) for x in loop.inputs], sequences, lengths
    )
    totals = [_totals(loop, states, sequences, lengths) for _, states in series]
    whole = np.hypot.reduce(totals) if len(totals) > 1 and loop.c_is_total else None
    made = partial(
        Profile,
        module=loop.module,
        call=loop.index,
        kind=loop.kind,
        layer=0,
        direction="forward",
        timesteps=len(rows),
        batch_size=max(rows),
        sequences=tuple(sequences),
        lengths=tuple(lengths),
        direct=None,
        whole=whole,
        curves=_curves(
            loop, series, [j for j, length in zip(sequences, lengths, strict=True) if length > _anchor(loop)]
        ),
        inexact_reason=_inexact(loop, rows, series, totals[0]),
        truncated=loop.is_truncated(),
        cell_cut=loop.is_cell_cut(),
        fused=False,
        ends=find_ends(*runs, reverse=False, lengths=tuple(lengths), sent=totals[0], alone=loop.totals_are_lagged),
        handed_over=any(is_handed_over(state) for _, state in loop.steps[0].given),
        with_gradient=int(reached.sum()),
        unjoined=come_from_itself((state for _, state in loop.steps[0].given), (weight for _, weight in loop.weights)),
    )
    return [
        made(state=name, primary=not i, total=total)
        for i, ((name, _), total) in enumerate(zip(series, totals, strict=True))
        if loop.c_is_total or not i
    ]


def _lost(loop: Loop) -> str | None:
    if any(state.lost() for state in loop.states):
        return "a state that is a view of another tensor was changed in place, and its gradient was not seen"
    return None


def _small(loop: Loop, totals: Floats) -> str | None:
    """Whether gradients of those that a curve shows lie where their
    number format holds fewer digits.
    """
    normal = torch.finfo(loop.h[0].tensor.dtype).tiny
    within = totals[np.isfinite(totals)]
    small = (within > 0) & (within < normal) & (within >= FLOOR * within.max(initial=0.0))
    return too_small(normal) if small.any() else None


def _reached(loop: Loop, batch: int) -> axes.Bool[Tensor, " batch"]:
    """Which of the sequences that the first step has get a gradient at
    any step: ``(batch,)``, boolean.
    """
    reached = torch.zeros(batch, dtype=torch.bool)
    for state in loop.states:
        gradient = state.slot.value()
        if gradient is not None:
            arrived = loop.rows(gradient).ne(0).any(-1).cpu()[:batch]
            reached[: len(arrived)] |= arrived
    return reached


_ROWS_UNKNOWN = (
    "its batch changes in size from step to step, and a row was only taken to be the same sequence throughout"
)
_MIXED = "it is called more than once in a timestep, and the next state is made of several of the results; measured is that of one"

Series = list[tuple[str, list[LoopState]]]


def _inexact(loop: Loop, rows: list[int], series: Series, totals: Any) -> str | None:
    left_out = [name for name in loop.names if name not in dict(series)]
    if left_out:
        return f"its state {left_out[0]} has no row for each sequence of the batch, and was left out"
    if loop.mixed:
        return _MIXED
    return (
        loop.doubt
        or _lost(loop)
        or loop.inexact_reason
        or _small(loop, totals)
        or (None if _rows_stay(loop, rows) else _ROWS_UNKNOWN)
    )


def _rows_stay(loop: Loop, rows: list[int]) -> bool:
    """Whether, wherever the batch changes in size, the rows that stay are the first ones, in
    order: as ``h[:n]`` leaves them.
    """
    for t in range(1, len(rows)):
        if rows[t] == rows[t - 1]:
            continue
        given, before = dict(loop.steps[t].given).get(loop.names[0]), loop.h[t - 1].tensor
        stay = min(rows[t - 1 : t + 1])
        if given is None or not torch.equal(loop.rows(given)[:stay], loop.rows(before)[:stay]):
            return False
    return True


def _totals(loop: Loop, states: list[LoopState], sequences: list[int], lengths: list[int]) -> Any:
    """``(sequence, time)``, NaN past a sequence's end."""
    chosen, ends = torch.tensor(sequences), torch.tensor(lengths)
    totals = torch.full((len(sequences), len(states)), torch.nan, dtype=torch.float64)
    for t, state in enumerate(states):
        there = ends > t
        totals[there, t] = _norms(loop, state, state.slot.value())[chosen[there]]
    return totals.numpy()


def _norms(loop: Loop, state: LoopState, gradient: Tensor | None) -> axes.Float[Tensor, " batch"]:
    """Of each row of a state's gradient, on the CPU; 0 where there is none."""
    if gradient is None:
        return torch.zeros(len(loop.rows(state.tensor)), dtype=torch.float64)
    return norm(loop.rows(gradient)).cpu().double()


def _curves(loop: Loop, series: Series, sequences: list[int]) -> Any:
    """``(curve, lag)`` of those of the chosen sequences that the loss reached at the
    anchor, of all states together.
    """
    until = _anchor(loop) + 1
    joint = torch.zeros(until, len(sequences), dtype=torch.float64)
    for i, name in enumerate(loop.names):
        states = dict(series).get(name)
        gradients = None if states is None else _lagged(loop, states, i)
        if states is None or gradients is None:
            continue
        pairs = zip(states[:until], gradients[:until], strict=True)
        joint = torch.hypot(joint, torch.stack([_norms(loop, state, gradient)[sequences] for state, gradient in pairs]))
    curves = joint.flip(0).T
    there = curves[:, 0] != 0
    reached = curves[there]
    if not len(reached):
        return np.zeros((0, 0))
    ratios = np.nan_to_num((reached / reached[:, :1]).numpy(), nan=np.inf, posinf=np.inf)
    begins = episodes_of_loop(loop, [j for j, kept in zip(sequences, there.tolist(), strict=True) if kept], until - 1)
    return without_earlier_episodes(ratios, begins, until - 1)


def _anchor(loop: Loop) -> int:
    """The timestep from which the lags are followed; the last one, where it is not known."""
    return len(loop.steps) - 1 if loop.anchor is None else loop.anchor


def _lagged(loop: Loop, states: list[LoopState], number: int) -> list[Tensor | None] | None:
    """The gradient that the loss of the last timestep sends to each of the ``number``-th states."""
    if loop.totals_are_lagged or len(states) == 1:  # at the last timestep itself, total and lagged are the same
        return [state.slot.value() for state in states]
    return None if loop.lagged is None else loop.lagged[number * len(states) :][: len(states)]
