"""Calls of a fused module that continue one another, as one chain: a module fed one
timestep or one chunk at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.chain import Chain
from lightning_gradwatch.recurrent.graph.between import come_from_itself
from lightning_gradwatch.recurrent.graph.latest import Latest
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.scan import Scan

BIDIRECTIONAL = "its state goes on from call to call, and calls of a bidirectional module are measured each by itself"
PACKED = "its state goes on from call to call, and calls with packed sequences are measured each by itself"
RETAINED = (
    "its state comes from a call that an earlier backward pass went back through, and each call is measured by itself"
)
RESIZED = "its state goes on from call to call in batches of different sizes, and each call is measured by itself"


def stitch(calls: Sequence[RecurrentCall | Loop | Scan]) -> list[RecurrentCall | Loop | Scan | Chain]:
    """Join each call whose initial state hangs, in the graph, on an earlier call
    of the same module to that call.

    Whatever lies between: nothing, a mask, a norm, an index. It walks through the graph: for
    sampled steps. Calls that continue one another but cannot be joined stay apart and say why.
    """
    stitched: list[RecurrentCall | Loop | Scan | Chain] = []
    by_module: dict[str, list[RecurrentCall]] = {}
    for call in calls:
        if isinstance(call, RecurrentCall):
            by_module.setdefault(call.module, []).append(call)
    for of_module in by_module.values():
        first = of_module[0].index
        for place, chain in enumerate(_chains(of_module)):  # they are counted anew: many calls may have become one
            begin = chain.calls[0]
            if begin.unjoined is None and come_from_itself((begin.h0, begin.c0), begin.weights):
                begin.unjoined = RETAINED
            one = begin if len(chain.calls) == 1 else chain
            one.index = first + place
            stitched.append(one)
    return [*stitched, *(call for call in calls if not isinstance(call, RecurrentCall))]


def _chains(calls: Sequence[RecurrentCall]) -> list[Chain]:
    if len(calls) == 1:
        return [Chain([calls[0]])]
    chains: list[Chain] = []
    ends: dict[int, Chain] = {}  # number of a chain's last call → the chain
    latest = Latest([call.edges.made for call in calls])
    for place, call in enumerate(calls):
        before = max(map(latest, call.edges.given))
        chain = ends.get(before) if before < place else None
        reason = None if before < 0 else _why_apart(calls[before], call)
        if chain is None or reason is not None:
            chain = Chain([call])
            chains.append(chain)
            if reason is not None:
                calls[before].unjoined = call.unjoined = reason
        else:
            del ends[before]
            chain.plain &= _is_plain(calls[before], call) and latest(call.edges.input) < 0
            chain.calls.append(call)
        ends[place] = chain
    return chains


def _why_apart(before: RecurrentCall, call: RecurrentCall) -> str | None:
    """Why two calls that follow one another cannot be measured as one
    sequence; None where they can.
    """
    if call.shape.num_directions == 2:
        return BIDIRECTIONAL
    if call.has_lengths() or before.has_lengths():
        return PACKED
    if before.shape != call.shape or before.h_n.shape != call.h_n.shape:
        return RESIZED
    return None


def _is_plain(before: RecurrentCall, call: RecurrentCall) -> bool:
    """Whether the second begins with the very states that the first one ended with, and
    all is as if they were one call.
    """
    return (
        call.edges.given == before.edges.made[1:]
        and not call.shape.dropout
        and call.input.dim() == before.input.dim()
        and all(now is then for now, then in zip(call.weights, before.weights, strict=True))
    )
