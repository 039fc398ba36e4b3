"""From a recurrent call to its profiles: one for each layer, direction and state."""

# Over 300 lines: one way from a sweep to profiles, of a call and of calls that go on from others.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.forward import Saturation
from lightning_gradwatch.padding import find_ends
from lightning_gradwatch.profile import Floats, Profile
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.chain import Chain
from lightning_gradwatch.recurrent.initial_state import is_cell_cut, is_handed_over, is_truncated
from lightning_gradwatch.recurrent.layout import DIRECTIONS, REVERSE, Layout, pick_sequences
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.measure import beyond, equal_ends
from lightning_gradwatch.recurrent.measure.anchors import Anchors
from lightning_gradwatch.recurrent.measure.cell_gates import get_nothing, look_at_gates
from lightning_gradwatch.recurrent.measure.chain_gradients import (
    Norms,
    arrived,
    as_one,
    measure_ends,
    reached_by,
    without_ends,
)
from lightning_gradwatch.recurrent.measure.direction import DirectionSweep
from lightning_gradwatch.recurrent.measure.influence import influence_profiles
from lightning_gradwatch.recurrent.measure.loop_profiles import loop_profiles
from lightning_gradwatch.recurrent.measure.resets import episodes_of_chain, over_first
from lightning_gradwatch.recurrent.measure.rows import MIXED
from lightning_gradwatch.recurrent.measure.scan_profiles import scan_profile
from lightning_gradwatch.recurrent.measure.sweep import CHUNK, Sweep, sweep
from lightning_gradwatch.recurrent.measure.tables import by_time, lag_curves
from lightning_gradwatch.recurrent.scan import Scan
from lightning_gradwatch.thresholds import SUSPICIOUS_SHARE


def measure_calls(
    calls: Sequence[RecurrentCall | Loop | Scan | Chain],
    max_sequences: int | None,
    anchors: int,
    *,
    influence: bool = False,
    before: beyond.Window | None = None,
) -> list[Profile]:
    """The profiles of all calls, loops and scans of a step, after its backward pass.

    Args:
        max_sequences: of each batch; None takes all.
        anchors: of each sequence of a scan; of a fused call the sequences take turns with them.
        influence: measure the gradients of fused modules' inputs as well.
        before: the window that came before that of a fused module's only call.
    """
    measured: list[Profile] = []
    for call in calls:
        if isinstance(call, Loop):
            measured += beyond.without_share(_with_gates(call, loop_profiles(call, max_sequences)), beyond.IN_A_LOOP)
        elif isinstance(call, Scan):
            measured.append(scan_profile(call, max_sequences, anchors))
        elif isinstance(call, Chain):
            measured += beyond.without_share(chain_profiles(call, max_sequences, anchors), beyond.CALLED_AGAIN)
        else:
            chunk = _chunk(call, max_sequences)
            swept = sweep(call, max_sequences=max_sequences, anchors=anchors, chunk=chunk, inputs=influence)
            made = profiles(call, swept, _saturation(call, swept, chunk))
            shares = (
                beyond.shares_beyond(call, swept, before) if is_truncated(call.h0) or is_truncated(call.c0) else None
            )
            measured += (
                beyond.without_share(made, beyond.obstacle(call)) if shares is None else beyond.with_share(made, shares)
            )
    return measured


def _with_gates(loop: Loop, measured: list[Profile]) -> list[Profile]:
    share, saturation = look_at_gates(loop, measured[0].sequences)
    return [replace(profile, gate_gradient=share, saturation=saturation) for profile in measured]


def _chunk(call: RecurrentCall, max_sequences: int | None) -> int:
    """Timesteps that a sweep holds at once: fewer where it takes all of a large batch,
    so that it needs no more memory.
    """
    batch = call.h_n.shape[1] if call.h_n.dim() == 3 else 1
    return CHUNK if max_sequences is not None else max(CHUNK * 64 // max(batch, 64), 16)


def learns(call: RecurrentCall) -> bool:
    """Whether any of its weights is trained."""
    return any(weight.requires_grad for weight in call.weights)


Saturations = list[list[Saturation | None]]
"""By layer and direction."""


def _saturation(call: RecurrentCall, swept: Sweep, chunk: int) -> Saturations | None:
    """A closer look at the gates, where hardly any gradient reaches them; None elsewhere."""
    shares = [one.gate_share() for pair in swept.directions for one in pair]
    if not learns(call) or not any(share is not None and share < SUSPICIOUS_SHARE for share in shares):
        return None
    again = sweep(call, anchors=0, chunk=chunk, sequences=swept.layout.sequences, saturation=True)
    return [[None if one.gate_count is None else one.gate_count.result() for one in pair] for pair in again.directions]


def profiles(call: RecurrentCall, swept: Sweep, saturation: Saturations | None = None) -> list[Profile]:
    """The profiles of a swept call, lowest layer first; for an LSTM one of h and one of c,
    which share the lagged curves.
    """
    made: list[Profile] = []
    truncated = is_truncated(call.h0) or is_truncated(call.c0)
    runs = equal_ends.of_call(call, swept.layout, CHUNK)
    from_loss = [by_time(_sent(one), swept.layout, d) for d, one in enumerate(swept.directions[-1])]
    for layer, pair in enumerate(swept.directions):
        for direction, one in enumerate(pair):
            states = [("h", one.total, one.direct)]
            if one.total_cell is not None and one.direct_cell is not None:
                states.append(("c", one.total_cell, one.direct_cell))
            curves = _lag_curves(one, swept.layout, swept.anchors, direction)
            whole = None if one.total_cell is None else torch.hypot(one.total[:, 0], one.total_cell[:, 0])
            unread = not _is_reached(one) and any(map(_is_reached, pair))
            top = layer == len(swept.directions) - 1
            ends = find_ends(
                *runs,
                reverse=direction == REVERSE,
                lengths=tuple(swept.layout.lengths.tolist()),
                # To what lies below the top of a bidirectional stack, the
                # loss comes by both directions.
                sent=from_loss[direction] if top else sum(from_loss[1:], start=from_loss[0]),
            )
            for state, total, direct in states:
                made.append(
                    Profile(
                        module=call.module,
                        call=call.index,
                        kind=call.shape.kind,
                        layer=layer,
                        direction=DIRECTIONS[direction],
                        state=state,
                        primary=state == "h",
                        timesteps=swept.layout.timesteps,
                        batch_size=swept.layout.batch_size,
                        sequences=tuple(swept.layout.sequences),
                        lengths=tuple(swept.layout.lengths.tolist()),
                        total=by_time(total[:, 0], swept.layout, direction),
                        direct=by_time(direct, swept.layout, direction),
                        curves=curves,
                        inexact_reason=swept.inexact_reason or _nothing_known(call, swept.layout.timesteps),
                        layers=call.shape.num_layers,
                        truncated=truncated,
                        ends=ends,
                        gate_gradient=one.gate_share() if learns(call) else None,
                        saturation=None if saturation is None else saturation[layer][direction],
                        fused=not call.parts,
                        handed_over=_is_handed_over(call),
                        unjoined=call.unjoined is not None,
                        with_gradient=swept.with_gradient,
                        batch_first=_order(call),
                        by_timestep=swept.by_timestep,
                        unread=unread,
                        whole=None if whole is None else by_time(whole, swept.layout, direction),
                    )
                )
    return made + influence_profiles(swept, [one for one in made if one.state == "h" and one.layer == 0])


def _is_reached(one: DirectionSweep) -> bool:
    """Whether any state of a layer and direction gets a gradient."""
    return bool(one.total[:, 0].any()) or (one.total_cell is not None and bool(one.total_cell[:, 0].any()))


def _sent(one: DirectionSweep) -> axes.Float[Tensor, "time sequence"]:
    """Norms of all that comes from outside the recurrence ``(time, sequence)``."""
    return one.direct if one.direct_cell is None else one.direct + one.direct_cell


def _order(call: RecurrentCall) -> bool | None:
    """Whether the batch comes before time; None where there is no such order."""
    return None if call.batch_sizes is not None or call.input.dim() == 2 else call.shape.batch_first


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
        chunk = _chunk(joined, max_sequences)
        run = partial(sweep, anchors=anchors, chunk=chunk, sequences=sequences)
        swept = run(joined)
        if totals.agrees(swept, joined.output.dtype):
            return profiles(joined, swept, _saturation(joined, swept, chunk))
        swept = run(without_ends(chain, joined))
        curves = [_lag_curves(one, swept.layout, swept.anchors, 0) for (one,) in swept.directions]
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
    lengths, trail = (timesteps,) * len(sequences), chain.calls[-1].trail
    sent = totals.h[-1].T.contiguous().numpy()
    runs = equal_ends.of_steps(_steps(chain), sequences, lengths)
    alone = trail is not None and trail.totals_are_lagged
    ends = find_ends(*runs, reverse=False, lengths=lengths, sent=sent, alone=alone)
    starving = bool(sent.any()) and get_nothing(first.weights, float(np.nanmax(sent)))
    return [
        Profile(
            module=first.module,
            call=first.index,
            kind=first.shape.kind,
            layer=layer,
            direction=DIRECTIONS[0],
            state=state,
            primary=state == "h",
            timesteps=timesteps,
            batch_size=first.batch_size(),
            sequences=tuple(sequences),
            lengths=lengths,
            total=norms[layer].T.contiguous().numpy(),
            direct=None,
            curves=curves[layer],
            inexact_reason=reason,
            layers=first.shape.num_layers,
            truncated=is_truncated(first.h0) or is_truncated(first.c0),
            cell_cut=is_cell_cut((call.h0, call.c0) for call in chain.calls[1:]),
            handed_over=_is_handed_over(first),
            ends=ends,
            fused=False,
            gate_gradient=0.0 if starving else None,
            with_gradient=with_gradient,
            batch_first=_order(first),
            whole=totals.both(layer).T.contiguous().numpy() if totals.c else None,
        )
        for layer in range(first.shape.num_layers)
        for state, norms in (("h", totals.h), ("c", totals.c))
        if norms
    ]


def _steps(chain: Chain) -> list[Tensor | None]:
    """The inputs of all timesteps, ``(batch, input)`` each; none where there is no batch."""
    if chain.calls[0].input.dim() < 3:
        return []
    return [x for call in chain.calls for x in call.input.unbind(call.time_dim())]


def _is_handed_over(call: RecurrentCall) -> bool:
    return is_handed_over(call.h0) or is_handed_over(call.c0)


def _lag_curves(sweep: DirectionSweep, layout: Layout, anchors: Anchors, direction: int) -> Floats:
    """``(curve, lag)`` of a layer's whole state: of an LSTM that is h and c together."""
    norms = sweep.total[:, 1:]
    if sweep.total_cell is not None:
        norms = torch.hypot(norms, sweep.total_cell[:, 1:])
    return lag_curves(norms, layout, anchors, direction)


def _nothing_known(call: RecurrentCall, timesteps: int) -> str | None:
    """Why a call of one timestep that is measured by itself says nothing of the way back;
    None where a call says something.
    """
    return call.unjoined if timesteps == 1 else None
