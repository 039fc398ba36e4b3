"""Where in a graph a parameter is used, and where the slices of a tensor are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_gradwatch.recurrent.graph.edges import number
from lightning_gradwatch.recurrent.graph.topology import SELECTING, Source, Topology, part_of


@dataclass(frozen=True, slots=True)
class Uses:
    """Of one parameter, or of the slices of one tensor.

    Args:
        source: what is used.
        leaf: a parameter that it was made with.
        ranks: each place at which it is used, with when it was: 1, 2, 3 …; places at which the same
            slice is used have one.
    """

    source: Source
    leaf: Tensor
    ranks: dict[int, int]
    is_slices: bool = False


def uses_of_parameters(graph: Topology) -> list[Uses]:
    """Of each parameter, and of what is made with parameters alone: matrices first, then the most
    used.
    """
    places: dict[Source, list[int]] = {}
    for at, children in enumerate(graph.children):
        for edge in children if graph.sources[at] is None else ():
            source = graph.edge_source(edge)
            if source is not None:
                places.setdefault(source, []).append(at)
    repeated = [
        Uses(source, graph.leaves[source], _ranked(graph, {place: place for place in at}))
        for source, at in places.items()
    ]
    return sorted(repeated, key=lambda uses: (uses.leaf.dim() < 2, -len(uses.ranks)))


def uses_of_slices(graph: Topology) -> list[Uses]:
    """Of each tensor that is taken apart; none of one that hangs on parameters alone."""
    slices: dict[tuple[int, int], dict[int, object]] = {}
    same = _same_parts(graph)
    for at, children in enumerate(graph.children):
        for edge in children:
            if _selects(graph, edge[0]):
                below, output = graph.children[edge[0]][0]
                slices.setdefault((same[below], output), {})[at] = (*part_of(graph.nodes[edge[0]]), edge[1])
    uses: list[Uses] = []
    for taken, parts in slices.items():
        leaf = leaf_behind(graph, taken[0])
        if leaf is not None:
            uses.append(Uses(("slices", *taken), leaf, _ranked(graph, parts), is_slices=True))
    return uses


def _same_parts(graph: Topology) -> list[int]:
    """Of each place the first one that takes the same part of the same tensor; itself if it takes
    none. ``z[:, 1:][:, t]`` makes its first slice anew for each ``t``, and so does ``z[:, t]`` in
    PyTorch 2.2.
    """
    same, first = list(range(len(graph.nodes))), dict[tuple[object, ...], int]()
    for at, node in enumerate(graph.nodes):
        if _selects(graph, at):
            below, output = graph.children[at][0]
            same[at] = first.setdefault((same[below], output, *part_of(node)), at)
    return same


def _selects(graph: Topology, at: int) -> bool:
    return graph.kinds[at] in SELECTING and graph.sources[at] is None


def _ranked(graph: Topology, parts: Mapping[int, object]) -> dict[int, int]:
    """By the order in which they were made."""
    order: dict[object, int] = {}
    ordered = sorted(parts, key=lambda at: number(graph.nodes[at]))
    return {at: order.setdefault(parts[at], len(order) + 1) for at in ordered}


def leaf_behind(graph: Topology, at: int) -> Tensor | None:
    """The nearest of the parameters that a place was made with."""
    frontier, seen = [at], {at}
    for place in frontier:  # it grows as we go
        source = graph.sources[place]
        if source is not None:
            return graph.leaves[source]
        new = [child for child, _ in graph.children[place] if child not in seen]
        seen.update(new)
        frontier += new
    return None
