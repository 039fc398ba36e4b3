"""States that are reset for some sequences of a batch: where an episode ends, another begins.

No loss of the new episode reaches the old one, and that it does not is no vanishing: lags are
counted within episodes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.profile import Floats
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.chain import Chain
from lightning_gradwatch.recurrent.graph.between import nodes_between
from lightning_gradwatch.recurrent.graph.ways_up import MOVING
from lightning_gradwatch.recurrent.loop import Loop, Made


def without_earlier_episodes(curves: Floats, begins: Sequence[int], anchor: int) -> Floats:
    """The curves with NaN at the lags that lie before a sequence's episode.

    Only where nothing came back from there, which an operation that is no reset would not see to.

    Args:
        curves: ``(curve, lag)``.
        begins: the timestep at which each curve's episode begins; ``anchor``: that of lag 0.
    """
    kept = curves.copy()
    for row, begin in zip(kept, begins, strict=True):
        before = row[anchor - begin + 1 :]
        if begin and not np.nan_to_num(before).any():
            before[:] = np.nan
    reached = np.flatnonzero(np.isfinite(kept).any(axis=0) | np.isinf(kept).any(axis=0))
    return kept[:, : reached[-1] + 1] if len(reached) else kept


def over_first(norms: axes.Float[Tensor, "time sequence"], begins: Sequence[int]) -> Floats:
    """``(time, sequence)`` → ``(curve, lag)`` of the sequences that
    the last timestep's loss reaches.

    Args:
        begins: the timestep at which each sequence's episode begins.
    """
    curves = norms.flip(0).T
    there = curves[:, 0] != 0
    reached = curves[there]
    ratios = np.nan_to_num((reached / reached[:, :1]).numpy(), nan=np.inf, posinf=np.inf)
    kept_begins = [begin for begin, kept in zip(begins, there.tolist(), strict=True) if kept]
    return without_earlier_episodes(ratios, kept_begins, len(norms) - 1)


def episodes_of_loop(loop: Loop, sequences: Sequence[int], anchor: int) -> list[int]:
    """The timestep at which the episode of each of the sequences begins that ``anchor`` lies in."""
    begins = [0] * len(sequences)
    first = [loop.rows(state) for _, state in loop.steps[0].given]
    for t in range(1, anchor + 1):
        before, made = loop.steps[t - 1], loop.steps[t]
        given = _given(made, before)
        if given and _is_moved(given, {state.edge.node for state in before.states}):
            here = _reset(
                [loop.rows(s) for s in given], [loop.rows(s.tensor) for s in before.states], first, not made.given
            )
            _note(begins, sequences, here, t)
    return begins


def episodes_of_chain(chain: Chain, sequences: Sequence[int]) -> list[int]:
    """The same of calls that continue one another; the last one holds the anchor."""
    begins = [0] * len(sequences)
    first = [_rows(state) for state in (chain.calls[0].h0, chain.calls[0].c0) if state is not None]
    for before, (call, start) in zip(chain.calls, chain.starts()[1:], strict=False):
        states = [state for state in (call.h0, call.c0) if state is not None]
        given = [_rows(state) for state in states]
        made = [_rows(state) for state in (before.h_n, before.c_n) if state is not None]
        if given and _is_moved(states, {edge[0] for edge in before.edges.made if edge is not None}):
            _note(begins, sequences, _reset(given, made, first, in_place=False), start)
    return begins


def _is_moved(given: Sequence[Tensor], before: Collection[Any]) -> bool:
    """Whether nothing but choosing, masking and scaling lies between a state and the one before.
    What else makes zeros of it, as a ReLU, is the network's own doing, and no reset.
    """
    between = nodes_between([state.grad_fn for state in given], before)
    return all(node.name().partition("Backward")[0].rstrip("0123456789") in MOVING for node in between)


def _given(made: Made, before: Made) -> list[Tensor]:
    """The states that a timestep was given, unless they are those of the one before as made."""
    if made.given:
        return [state for _, state in made.given]
    changed = any(state.tensor._version != state.version for state in before.states)
    return [state.tensor for state in before.states] if changed else []


def _reset(
    given: list[Tensor], before: list[Tensor], first: list[Tensor], in_place: bool
) -> axes.Bool[Tensor, " batch"]:
    """Which rows hold a sequence's first state, and not that of the timestep before."""
    count = min(len(rows) for rows in (*given, *before))
    begins = torch.ones(count, dtype=torch.bool, device=given[0].device)
    differs = torch.full_like(begins, in_place)
    for i, rows in enumerate(given):
        is_start = rows[:count].eq(0).all(1)
        if i < len(first) and first[i].shape[1] == rows.shape[1] and len(first[i]) >= count:
            is_start |= rows[:count].eq(first[i][:count]).all(1)
        begins &= is_start
        if i < len(before) and before[i].shape[1] == rows.shape[1]:
            differs |= rows[:count].ne(before[i][:count]).any(1)
    return begins & differs


def _note(begins: list[int], sequences: Sequence[int], reset: axes.Bool[Tensor, " batch"], t: int) -> None:
    resets = reset.tolist()
    for i, sequence in enumerate(sequences):
        if sequence < len(resets) and resets[sequence]:
            begins[i] = t


def _rows(state: axes.Inexact[Tensor, "*axes"]) -> axes.Inexact[Tensor, "batch width"]:
    """Those of all layers side by side, of ``(layer, batch, width)``."""
    state = state.detach()
    return state.reshape(1, -1) if state.dim() < 3 else state.movedim(1, 0).flatten(1)
