"""From a fused call to its profiles: one for each layer, direction and state."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from lightning_gradwatch.forward import Saturation
from lightning_gradwatch.padding import Ends, find_ends
from lightning_gradwatch.profile import Floats, Profile
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.initial_state import is_handed_over, is_truncated
from lightning_gradwatch.recurrent.layout import DIRECTIONS, REVERSE, Layout
from lightning_gradwatch.recurrent.measure import equal_ends
from lightning_gradwatch.recurrent.measure.anchors import Anchors
from lightning_gradwatch.recurrent.measure.direction import DirectionSweep
from lightning_gradwatch.recurrent.measure.influence import influence_profiles
from lightning_gradwatch.recurrent.measure.sweep import CHUNK, Sweep, sweep
from lightning_gradwatch.recurrent.measure.tables import by_time, lag_curves
from lightning_gradwatch.thresholds import SUSPICIOUS_SHARE


def chunk_of(call: RecurrentCall, max_sequences: int | None) -> int:
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


def saturation_of(call: RecurrentCall, swept: Sweep, chunk: int) -> Saturations | None:
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
    layout = swept.layout
    of_call = partial(
        Profile,
        module=call.module,
        call=call.index,
        kind=call.shape.kind,
        timesteps=layout.timesteps,
        batch_size=layout.batch_size,
        sequences=tuple(layout.sequences),
        lengths=tuple(layout.lengths.tolist()),
        inexact_reason=swept.inexact_reason or _nothing_known(call, layout.timesteps),
        layers=call.shape.num_layers,
        truncated=is_truncated(call.h0) or is_truncated(call.c0),
        fused=not call.parts,
        handed_over=takes_state_over(call),
        unjoined=call.unjoined is not None,
        with_gradient=swept.with_gradient,
        batch_first=order_of(call),
        by_timestep=swept.by_timestep,
    )
    made: list[Profile] = []
    for layer, direction, ends in _ends(call, swept):
        pair = swept.directions[layer]
        one = pair[direction]
        of_layer = partial(
            of_call,
            layer=layer,
            direction=DIRECTIONS[direction],
            curves=whole_curves(one, layout, swept.anchors, direction),
            ends=ends,
            gate_gradient=one.gate_share() if learns(call) else None,
            saturation=None if saturation is None else saturation[layer][direction],
            unread=not _is_reached(one) and any(map(_is_reached, pair)),
            whole=_whole(one, layout, direction),
        )
        made += [of_layer(**of_state) for of_state in _states(one, layout, direction)]
    return made + influence_profiles(swept, [one for one in made if one.state == "h" and one.layer == 0])


def _ends(call: RecurrentCall, swept: Sweep) -> Iterator[tuple[int, int, Ends]]:
    """The equal ends of the sequences, as each layer and direction meets them."""
    layout, layers = swept.layout, swept.directions
    runs = equal_ends.of_call(call, layout, CHUNK)
    lengths = tuple(layout.lengths.tolist())
    from_loss = [by_time(_sent(one), layout, direction) for direction, one in enumerate(layers[-1])]
    # To what lies below the top of a bidirectional stack, the loss comes by both directions.
    from_both = sum(from_loss[1:], start=from_loss[0])
    for layer, pair in enumerate(layers):
        for direction in range(len(pair)):
            sent = from_loss[direction] if layer == len(layers) - 1 else from_both
            yield layer, direction, find_ends(*runs, reverse=direction == REVERSE, lengths=lengths, sent=sent)


class _OfState(TypedDict):
    state: str
    primary: bool
    total: Floats
    direct: Floats


def _states(one: DirectionSweep, layout: Layout, direction: int) -> Iterator[_OfState]:
    """What is known of h, and of an LSTM's c."""
    for state, total, direct in (("h", one.total, one.direct), ("c", one.total_cell, one.direct_cell)):
        if total is not None and direct is not None:
            yield {
                "state": state,
                "primary": state == "h",
                "total": by_time(total[:, 0], layout, direction),
                "direct": by_time(direct, layout, direction),
            }


def _whole(one: DirectionSweep, layout: Layout, direction: int) -> Floats | None:
    """The total gradient of an LSTM's h and c together; None of others."""
    if one.total_cell is None:
        return None
    return by_time(torch.hypot(one.total[:, 0], one.total_cell[:, 0]), layout, direction)


def _is_reached(one: DirectionSweep) -> bool:
    """Whether any state of a layer and direction gets a gradient."""
    return bool(one.total[:, 0].any()) or (one.total_cell is not None and bool(one.total_cell[:, 0].any()))


def _sent(one: DirectionSweep) -> axes.Float[Tensor, "time sequence"]:
    """Norms of all that comes from outside the recurrence ``(time, sequence)``."""
    return one.direct if one.direct_cell is None else one.direct + one.direct_cell


def order_of(call: RecurrentCall) -> bool | None:
    """Whether the batch comes before time; None where there is no such order."""
    return None if call.batch_sizes is not None or call.input.dim() == 2 else call.shape.batch_first


def takes_state_over(call: RecurrentCall) -> bool:
    return is_handed_over(call.h0) or is_handed_over(call.c0)


def whole_curves(sweep: DirectionSweep, layout: Layout, anchors: Anchors, direction: int) -> Floats:
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
