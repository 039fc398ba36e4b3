"""Replay a recurrent call's adjoint: total and direct gradients of every hidden state, and
those of single anchors by lag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.layout import Layout, pick_sequences
from lightning_gradwatch.recurrent.measure.anchors import Anchors, choose_anchors
from lightning_gradwatch.recurrent.measure.direction import DirectionSweep
from lightning_gradwatch.recurrent.measure.exactness import disagreement, inexact_reason, obstacle
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
    caller counts time, if it was asked for. ``by_timestep``: why the closed forms took over
    from the fused operator, if they did.
    """

    layout: Layout
    anchors: Anchors
    directions: list[list[DirectionSweep]]
    inexact_reason: str | None
    with_gradient: int
    inputs: Tensor | None = None
    by_timestep: str | None = None


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
    at_once: bool | None = None,
) -> Sweep:
    """Run the adjoint of ``call`` over up to ``max_sequences`` of its sequences, exactly for those.

    Stream 0 carries the whole loss; each further stream one anchor's direct loss L_τ alone. Memory
    beyond the call's own tensors grows with ``chunk``, not with the sequence, save for the norms
    themselves and, in a bidirectional stack, what one layer hands to the next.

    Args:
        anchors: timesteps to follow back from, with which the sequences take turns.
        gates: look for the first pre-activation that is not finite as well.
        saturation: count the saturated gates as well.
        inputs: go on to the module's input.
        sequences: the very ones to take.
        at_once: replay by the fused operator, whose launches do not grow with time, and by the
            closed forms only where that fails; False by the closed forms at once, one matrix
            product a timestep. None chooses by the device: on CUDA launches are what costs.
    """
    reached = reached_sequences(call)
    layout = Layout(call, pick_sequences(reached, max_sequences) if sequences is None else sequences)
    chosen = choose_anchors(call, layout, anchors, chunk)
    made = partial(Stack, call, layout, chunk=chunk, gates=gates, saturation=saturation, inputs=inputs)
    at_once = call.output.device.type == "cuda" if at_once is None else at_once
    if gates or saturation or call.limit is not None:  # they look, or act, at each timestep
        at_once = False
    by_timestep = obstacle(call) if at_once else None
    at_once = at_once and by_timestep is None
    stack = _swept(made, chosen, at_once=at_once)
    if at_once:
        by_timestep = disagreement(stack)
        stack = stack if by_timestep is None else _swept(made, chosen, at_once=False)
    return Sweep(
        layout,
        stack.anchors,
        stack.directions,
        inexact_reason(stack),
        int(reached.sum()),
        stack.inputs,
        by_timestep,
    )


def _swept(made: Callable[..., Stack], anchors: Anchors, *, at_once: bool) -> Stack:
    stack = made(anchors, at_once=at_once)
    stack.sweep()
    if anchors.lift != 1 and not stack.is_finite():  # it may be so only because it was lifted
        stack = made(replace(anchors, lift=1.0), at_once=at_once)
        stack.sweep()
    return stack
