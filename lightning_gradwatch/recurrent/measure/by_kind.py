"""Which way a call is measured: by its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.chain import Chain
from lightning_gradwatch.recurrent.initial_state import is_truncated
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.measure import beyond
from lightning_gradwatch.recurrent.measure.cell_gates import look_at_gates
from lightning_gradwatch.recurrent.measure.chain_profiles import chain_profiles
from lightning_gradwatch.recurrent.measure.loop_profiles import loop_profiles
from lightning_gradwatch.recurrent.measure.profiles import chunk_of, profiles, saturation_of
from lightning_gradwatch.recurrent.measure.scan_profiles import scan_profile
from lightning_gradwatch.recurrent.measure.sweep import sweep
from lightning_gradwatch.recurrent.scan import Scan


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
            chunk = chunk_of(call, max_sequences)
            swept = sweep(call, max_sequences=max_sequences, anchors=anchors, chunk=chunk, inputs=influence)
            made = profiles(call, swept, saturation_of(call, swept, chunk))
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
