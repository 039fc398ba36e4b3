"""Replay a recurrent call's adjoint: total and direct gradients of every hidden state, and
those of single anchors by lag.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.layout import Layout, pick_sequences
from lightning_gradwatch.recurrent.measure.anchors import Anchors, choose_anchors
from lightning_gradwatch.recurrent.measure.direction import DirectionSweep
from lightning_gradwatch.recurrent.measure.reached import reached_sequences
from lightning_gradwatch.recurrent.measure.stack import Stack

CHUNK = 256
"""Timesteps whose gates are held at once: it bounds the memory that a sweep needs."""


@dataclass(slots=True)
class Sweep:
    """What one sweep found. ``directions[layer][direction]`` holds the norms.

    ``inexact_reason`` is None when the recomputed outputs agree with the recorded ones and nothing
    was missing. ``with_gradient``: to how many sequences of the whole batch the loss sends
    anything. ``inputs``: ‖∂L/∂x_t‖ of the lowest layer's input ``(time, stream, sequence)``, as the
    caller counts time, if it was asked for.
    """

    layout: Layout
    anchors: Anchors
    directions: list[list[DirectionSweep]]
    inexact_reason: str | None
    with_gradient: int
    inputs: Tensor | None = None


@torch.no_grad()
def sweep(
    call: RecurrentCall,
    *,
    max_sequences: int | None = 8,
    anchors: int = 4,
    chunk: int = CHUNK,
    gates: bool = False,
    saturation: bool = False,
    inputs: bool = False,
    sequences: list[int] | None = None,
) -> Sweep:
    """Run the adjoint of ``call`` over up to ``max_sequences`` of its sequences, exactly for those.

    Stream 0 carries the whole loss; each further stream one anchor's direct loss L_τ alone. Memory
    beyond the call's own tensors grows with ``chunk``, not with the sequence, save for the norms
    themselves and, in a bidirectional stack, what one layer hands to the next.

    Args:
        gates: look for the first pre-activation that is not finite as well.
        saturation: count the saturated gates as well.
        inputs: go on to the module's input.
        sequences: the very ones to take.
    """
    reached = reached_sequences(call)
    layout = Layout(call, pick_sequences(reached, max_sequences) if sequences is None else sequences)
    chosen = choose_anchors(call, layout, anchors, chunk)
    made = partial(Stack, call, layout, chunk=chunk, gates=gates, saturation=saturation, inputs=inputs)
    stack = made(chosen)
    stack.sweep()
    if chosen.lift != 1 and not stack.is_finite():  # it may be so only because it was lifted
        stack = made(replace(chosen, lift=1.0))
        stack.sweep()
    return Sweep(layout, chosen, stack.directions, stack.inexact_reason(), int(reached.sum()), stack.inputs)
