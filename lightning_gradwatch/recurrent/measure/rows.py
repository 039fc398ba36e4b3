"""Whether a row of a state stays that of one sequence from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.graph.edges import Edge
from lightning_gradwatch.recurrent.graph.second_pass import obstacle, start
from lightning_gradwatch.recurrent.pause import paused

MIXED = (
    "between its calls a row of the state comes from other rows (a new order, a norm over the batch), and a row was only taken to be the "
    "same sequence throughout"
)


def rows_are_mixed(calls: Sequence[RecurrentCall]) -> bool:
    """Whether, at the first, the middle or the last transition of a chain, a row hangs on
    other rows of the state before.

    What lies between two calls is run through backwards with ones in every other row of the later
    state; the rows between must get nothing. What may not run twice is not looked at.

    Raises:
        RuntimeError: it could not be run through.
    """
    last = len(calls) - 1
    return any(_mixes(calls[place], calls[place + 1]) for place in sorted({0, last // 2, last - 1}))


def _mixes(before: RecurrentCall, call: RecurrentCall) -> bool:
    sent = [
        (edge, state)
        for edge, state in zip(call.edges.given, (call.h0, call.c0), strict=True)
        if edge is not None and state is not None
    ]
    made = [edge for edge in before.edges.made[1:] if edge is not None]
    if call.batch_size() < 2 or not sent or obstacle([], [edge for edge, _ in sent], {*made, *(e for e, _ in sent)}):
        return False
    return any(bool(gradient[:, 1::2].any()) for gradient in _back(sent, made) if gradient is not None)


def _back(sent: Sequence[tuple[Edge, Tensor]], made: Sequence[Edge]) -> Sequence[Tensor | None]:
    ones = [torch.zeros_like(state) for _, state in sent]
    for one in ones:
        one[:, ::2] = 1.0
    begin = cast("Any", [start(edge, state) for edge, state in sent])
    with paused():
        return torch.autograd.grad(
            begin,
            [GradientEdge(*edge) for edge in made],
            ones,
            retain_graph=True,
            allow_unused=True,
        )
