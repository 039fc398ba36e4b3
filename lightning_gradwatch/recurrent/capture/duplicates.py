"""One recurrence that was found by itself and tapped as well is measured once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.autograd.graph import Node

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.scan import Scan

DEPTH = 3
"""How many operations may lie between a module's state and the one
that is tapped (an index, a view).
"""

NAMED_BY_TORCH = ("RNN", "GRU", "LSTM")
"""Kinds of PyTorch's own modules: these are reported under the module's name, a
cell of one's own under the tap's.
"""


def without_duplicates(calls: Sequence[RecurrentCall | Loop | Scan]) -> list[RecurrentCall | Loop | Scan]:
    """All but taps whose states are those of a module of PyTorch's own, and cells of
    one's own whose states are tapped.
    """
    taps = [call for call in calls if isinstance(call, Loop) and call.kind == "tap"]
    if not taps:
        return list(calls)
    others = {node: call for call in calls if not (_is_tap(call) or isinstance(call, Scan)) for node in _nodes(call)}
    left_out: set[str] = set()
    for name in dict.fromkeys(tap.module for tap in taps):
        sources = [_source(state.edge.node, others) for tap in taps if tap.module == name for state in tap.h]
        modules = {source.module if source is not None else None for source in sources}
        if len(modules) == 1 and sources[0] is not None:
            is_users = isinstance(sources[0], Loop) and sources[0].kind not in NAMED_BY_TORCH
            left_out.add(sources[0].module if is_users else name)
    return [call for call in calls if call.module not in left_out]


def _is_tap(call: RecurrentCall | Loop | Scan) -> bool:
    return isinstance(call, Loop) and call.kind == "tap"


def _nodes(call: RecurrentCall | Loop) -> Iterable[Node]:
    if isinstance(call, RecurrentCall):
        return [edge[0] for edge in call.edges.made if edge is not None]
    return [state.edge.node for state in call.states]


def _source(start: Node, others: dict[Node, RecurrentCall | Loop]) -> RecurrentCall | Loop | None:
    """The call that made the state at ``start``, itself or a few operations before which
    nothing else enters but parameters: what is made of several values is a state of its own.
    """
    node = start
    for _ in range(DEPTH + 1):
        if node in others:
            return others[node]
        given = [child for child, _ in node.next_functions if child is not None and not hasattr(child, "variable")]
        if len(given) != 1:
            return None
        node = given[0]
    return None
