"""The profiles of calls that continue one another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.padding import Ends, find_ends
from lightning_gradwatch.profile import Floats, Profile
from lightning_gradwatch.recurrent.chain import Chain
from lightning_gradwatch.recurrent.initial_state import is_cell_cut, is_truncated
from lightning_gradwatch.recurrent.layout import DIRECTIONS, pick_sequences
from lightning_gradwatch.recurrent.measure import equal_ends
from lightning_gradwatch.recurrent.measure.cell_gates import get_nothing
from lightning_gradwatch.recurrent.measure.chain_gradients import (
    Norms,
    arrived,
    as_one,
    measure_ends,
    reached_by,
    without_ends,
)
from lightning_gradwatch.recurrent.measure.profiles import (
    chunk_of,
    order_of,
    profiles,
    saturation_of,
    takes_state_over,
    whole_curves,
)
from lightning_gradwatch.recurrent.measure.resets import episodes_of_chain, over_first
from lightning_gradwatch.recurrent.measure.rows import MIXED
from lightning_gradwatch.recurrent.measure.sweep import sweep


@torch.no_grad()
def chain_profiles(chain: Chain, max_sequences: int | None, anchors: int) -> list[Profile]:
    """The profiles of calls that continue one another, as of one sequence.

    What arrives at the end of each call is all that the loss sends there, so its total gradients
    are exact whatever lies between. Lags come from the anchors of one sweep where the calls are as
    one; otherwise from the :class:`Trail`, from the last timestep alone.
    """
    reached = reached_by(chain)
    sequences = pick_sequences(reached, max_sequences)
    totals = measure_ends(chain, arrived(chain), sequences)
    made = partial(_of_chain, chain, totals, sequences=sequences, with_gradient=int(reached.sum()))
    if chain.plain:
        joined = as_one(chain)
        chunk = chunk_of(joined, max_sequences)
        run = partial(sweep, anchors=anchors, chunk=chunk, sequences=sequences)
        swept = run(joined)
        if totals.agrees(swept, joined.output.dtype):
            return profiles(joined, swept, saturation_of(joined, swept, chunk))
        swept = run(without_ends(chain, joined))
        curves = [whole_curves(one, swept.layout, swept.anchors, 0) for (one,) in swept.directions]
        return made(curves, totals.inexact_reason)
    curves, reason = _followed(chain, totals, sequences)
    return made(curves, totals.inexact_reason or reason)


def _followed(chain: Chain, totals: Norms, sequences: list[int]) -> tuple[list[Floats], str | None]:
    """``(curve, lag)`` of each layer as the trail found them; and why
    there are none, where it says so.
    """
    trail, layers = chain.calls[-1].trail, range(len(totals.h))
    lagged = None
    if trail is not None and trail.totals_are_lagged:
        lagged = totals
    elif trail is not None and trail.gradients is not None and len(trail.gradients) == len(chain.calls):
        lagged = measure_ends(chain, trail.gradients, sequences)
    if lagged is None:
        return [np.zeros((0, 0)) for _ in layers], chain.unfollowed if trail is None else trail.inexact_reason
    mixed = MIXED if trail is not None and trail.mixed else None
    begins = episodes_of_chain(chain, sequences)
    return [over_first(lagged.both(layer), begins) for layer in layers], lagged.inexact_reason or mixed


def _of_chain(
    chain: Chain,
    totals: Norms,
    curves: Sequence[Floats],
    reason: str | None,
    *,
    sequences: list[int],
    with_gradient: int,
) -> list[Profile]:
    first, timesteps = chain.calls[0], sum(chain.lengths())
    sent = _plain(totals.h[-1])
    of_chain = partial(
        Profile,
        module=first.module,
        call=first.index,
        kind=first.shape.kind,
        direction=DIRECTIONS[0],
        timesteps=timesteps,
        batch_size=first.batch_size(),
        sequences=tuple(sequences),
        lengths=(timesteps,) * len(sequences),
        direct=None,
        inexact_reason=reason,
        layers=first.shape.num_layers,
        truncated=is_truncated(first.h0) or is_truncated(first.c0),
        cell_cut=is_cell_cut((call.h0, call.c0) for call in chain.calls[1:]),
        handed_over=takes_state_over(first),
        ends=_ends(chain, sequences, sent),
        fused=False,
        gate_gradient=0.0 if sent.any() and get_nothing(first.weights, float(np.nanmax(sent))) else None,
        with_gradient=with_gradient,
        batch_first=order_of(first),
    )
    made: list[Profile] = []
    for layer in range(first.shape.num_layers):
        whole = _plain(totals.both(layer)) if totals.c else None
        of_layer = partial(of_chain, layer=layer, curves=curves[layer], whole=whole)
        made.append(of_layer(state="h", primary=True, total=_plain(totals.h[layer])))
        if totals.c:
            made.append(of_layer(state="c", primary=False, total=_plain(totals.c[layer])))
    return made


def _ends(chain: Chain, sequences: list[int], sent: Floats) -> Ends:
    """The equal ends of the sequences.

    Args:
        sent: what arrives at the top layer ``(sequence, time)``.
    """
    lengths, trail = (sum(chain.lengths()),) * len(sequences), chain.calls[-1].trail
    runs = equal_ends.of_steps(_steps(chain), sequences, lengths)
    alone = trail is not None and trail.totals_are_lagged
    return find_ends(*runs, reverse=False, lengths=lengths, sent=sent, alone=alone)


def _plain(norms: Tensor) -> Floats:
    """``(time, sequence)`` as a profile has it."""
    return norms.T.contiguous().numpy()


def _steps(chain: Chain) -> list[Tensor | None]:
    """The inputs of all timesteps, ``(batch, input)`` each; none where there is no batch."""
    if chain.calls[0].input.dim() < 3:
        return []
    return [x for call in chain.calls for x in call.input.unbind(call.time_dim())]
