"""Diagonal recurrences that one operation computes for all timesteps at once: they have no chain in
the graph, no loop and no call a timestep. The kinds of the operations show them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from lightning_gradwatch.recurrent.graph.topology import Topology
from lightning_gradwatch.recurrent.graph.uses import leaf_behind
from lightning_gradwatch.recurrent.graph.ways_up import MOVING

_BY_THEMSELVES = ("Logcumsumexp", "Cumprod")
"""Products of decays, or their logarithms."""

_SUM, _EXPONENTIALS = "Cumsum", ("Exp", "Exp2")
"""The exponential of a cumulative sum is a cumulative product."""

_BETWEEN = {*MOVING, "Sub", "Rsub", "Add", "Neg", "Mul", "MaskedFill", "Where", "Tril", "Clamp"}
"""What may lie between the two."""

MOST_BETWEEN = 6
"""So many operations, one upon the other."""


def cumulative(graph: Topology) -> Iterator[tuple[str, Tensor]]:
    """What is taken, and a parameter that it is taken of: of each operation that may well be a scan
    over data.
    """
    for at, kind in enumerate(graph.kinds):
        taken = _taken(graph, at, kind) if graph.sources[at] is None else None
        leaf = None if taken is None else leaf_behind(graph, at)
        if taken is not None and leaf is not None:
            yield taken, leaf


def _taken(graph: Topology, at: int, kind: str) -> str | None:
    if kind in _BY_THEMSELVES:
        return kind.lower()
    if kind in _EXPONENTIALS and _has_sum_below(graph, at):
        return "the exponential of a cumulative sum"
    if "scan" in kind.lower():  # of autograd functions of packages, or of one's own
        return kind
    return None


def _has_sum_below(graph: Topology, at: int) -> bool:
    frontier = {at}
    for _ in range(MOST_BETWEEN + 1):
        below = {child for place in frontier for child, _ in graph.children[place] if graph.sources[child] is None}
        kinds = {graph.kinds[place] for place in below}
        if not kinds.isdisjoint(_BY_THEMSELVES):
            return False  # it is that one's, which is told
        if _SUM in kinds:
            return True
        frontier = {place for place in below if graph.kinds[place] in _BETWEEN}
    return False
