"""Calls of a fused module that continue one another, as one call: a module fed one timestep or one chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.call import GradientSlot, RecurrentCall
from lightning_gradwatch.recurrent.loop import Loop


def stitch(calls: Sequence[RecurrentCall | Loop]) -> list[RecurrentCall | Loop]:
    """Join each call whose initial state *is* the final state of an earlier call of the same module to that call.

    Calls with dropout between layers stay apart, and packed and bidirectional ones: their ends don't meet in time.
    """
    chains: list[list[RecurrentCall]] = []
    loops: list[RecurrentCall | Loop] = []
    for call in calls:
        if isinstance(call, Loop):
            loops.append(call)
            continue
        chain = next((chain for chain in reversed(chains) if _continues(chain[-1], call)), None)
        if chain is None:
            chains.append([call])
        else:
            chain.append(call)
    joined = [chain[0] if len(chain) == 1 else _join(chain) for chain in chains]
    first = {call.module: call.index for call in reversed(calls) if isinstance(call, RecurrentCall)}
    for place, call in enumerate(joined):  # they are counted anew: many calls may have become one
        call.index = first[call.module] + sum(before.module == call.module for before in joined[:place])
    return [*joined, *loops]


def _continues(before: RecurrentCall, call: RecurrentCall) -> bool:
    shape = call.shape
    return (
        before.module == call.module
        and call.h0 is before.h_n
        and call.c0 is before.c_n
        and shape.num_directions == 1
        and not shape.dropout
        and before.shape == shape
        and call.batch_sizes is None
        and before.batch_sizes is None
        and call.input.dim() == before.input.dim()
    )


@torch.no_grad()
def _join(chain: list[RecurrentCall]) -> RecurrentCall:
    first, last = chain[0], chain[-1]
    time = 1 if first.shape.batch_first and first.input.dim() == 3 else 0
    joined = RecurrentCall(
        module=first.module,
        index=first.index,
        shape=first.shape,
        weights=first.weights,
        input=torch.cat([call.input for call in chain], time),
        h0=first.h0,
        c0=first.c0,
        output=torch.cat([call.output for call in chain], time),
        h_n=last.h_n,
        c_n=last.c_n,
        h_n_gradient=last.h_n_gradient,
        c_n_gradient=last.c_n_gradient,
        parts=tuple(chain),
        doubt=next((call.doubt for call in chain if call.doubt), None),
        limit=first.limit,
    )
    joined.output_gradient = _slot(torch.cat([_gradient(call.output_gradient, call.output) for call in chain], time))
    return joined


def _gradient(slot: GradientSlot, like: Tensor) -> Tensor:
    value = slot.value()
    return torch.zeros_like(like) if value is None else value


def _slot(gradient: Tensor) -> GradientSlot:
    slot = GradientSlot()
    slot(gradient)
    return slot
