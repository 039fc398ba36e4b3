"""Chains in a graph: the same operations again and again, each time on the result of the time
before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lightning_gradwatch.recurrent.graph.topology import Topology
from lightning_gradwatch.recurrent.graph.ways_up import HEAVY

_GATHERING = (
    "Add",
    "Cat",
    "CopySlices",
    "IndexAdd",
    "IndexPut",
    "Logaddexp",
    "Maximum",
    "Minimum",
    "Scatter",
    "ScatterAdd",
    "SelectScatter",
    "SliceScatter",
    "Stack",
    "Sub",
    "Where",
)
"""Operations that gather results one by one: a sum of losses, a list of outputs."""

_NEARBY = 200
"""So many operations beside a round are looked at."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """One chain.

    Args:
        growths: the places at which a further use joins it, the first at first.
        way: all places on it from the first use to the last.
    """

    growths: list[int]
    way: list[int]

    def __len__(self) -> int:
        return len(self.growths)

    def segments(self) -> list[list[int]]:
        """The places from each growth, it left out, up to the next one, it included."""
        segments: list[list[int]] = []
        starts = set(self.growths)
        for at in self.way:
            if segments:
                segments[-1].append(at)
            if at in starts:
                segments.append([])
        return segments[:-1] if segments and not segments[-1] else segments


def uses_in_a_row(graph: Topology, uses: Collection[int], barriers: Collection[int]) -> Rounds:
    """The most uses that lie on one way through the graph that leads through no barrier."""
    count, via = [0] * len(graph.nodes), [-1] * len(graph.nodes)
    for at, children in enumerate(graph.children):
        for child, _ in children:
            if count[child] > count[at] and child not in barriers:
                count[at], via[at] = count[child], child
        count[at] += at in uses
    return _trace(count, via)


def uses_that_join(graph: Topology, ranks: Mapping[int, int], barriers: Collection[int]) -> Rounds:
    """The longest way on which use after use joins what has been made with those before, none of
    which leads through a barrier.

    Results that are only gathered, and read by nobody until they all are there, make no chain.

    Args:
        ranks: of each use, when it was made: 1, 2, 3 …
    """
    size = len(graph.nodes)
    latest, count, via = [0] * size, [0] * size, [-1] * size
    for at, children in enumerate(graph.children):
        rank = ranks.get(at, 0)
        below = [child for child, _ in children if latest[child] and child not in barriers]
        latest[at] = max([rank, *(latest[child] for child in below)])
        count[at] = int(rank > 0)
        for child in below:
            grows = latest[at] > latest[child] and not _only_gathers(graph, at, child)
            if count[child] + grows > count[at]:
                count[at], via[at] = count[child] + grows, child
    return _trace(count, via)


def _only_gathers(graph: Topology, at: int, child: int) -> bool:
    return graph.kinds[at] in _GATHERING and graph.kinds[child] in _GATHERING and graph.users[child] == 1


def _trace(count: list[int], via: list[int]) -> Rounds:
    way = [count.index(max(count))]
    while via[way[-1]] >= 0:
        way.append(via[way[-1]])
    way.reverse()
    growths = [
        at for at, before in zip(way, [-1, *way], strict=False) if count[at] > (count[before] if before >= 0 else 0)
    ]
    return Rounds(growths, way)


def are_alike(graph: Topology, rounds: Rounds) -> bool:
    """Whether most rounds consist of the same operations."""
    made = Counter(tuple(graph.kinds[at] for at in segment) for segment in rounds.segments())
    return 2 * max(made.values(), default=0) >= sum(made.values())


def have_own_weights(graph: Topology, rounds: Rounds, single: Collection[object]) -> bool:
    """Whether most rounds have weights that no other round has: layers upon one another that share
    something.

    Args:
        single: the sources that are used once.
    """
    seen = [_layers(graph, segment, rounds.way) for segment in rounds.segments()]
    times = Counter(at for layers in seen for at in layers)
    with_weight = sum(any(times[at] == 1 and _has_weight(graph, at, single) for at in layers) for layers in seen)
    return 2 * with_weight > len(seen)


def _layers(graph: Topology, segment: list[int], way: list[int]) -> set[int]:
    """The products in a round: on the way, and on what joins it from the side."""
    order, seen = list(segment), {*way}
    for at in order:  # it grows as we go
        new = [child for child, _ in graph.children[at] if child not in seen]
        seen.update(new)
        if len(order) < len(segment) + _NEARBY:
            order += new
    return {at for at in order if graph.kinds[at].startswith(HEAVY)}


def _has_weight(graph: Topology, at: int, single: Collection[object]) -> bool:
    sources = [graph.edge_source(edge) for edge in graph.children[at]]
    return any(source in single and graph.leaves[source].dim() > 1 for source in sources if source is not None)


def are_carried_by(graph: Topology, rounds: Rounds, states: Collection[int]) -> bool:
    """Whether what most rounds make comes back to the next ones through one of ``states`` too:
    then they are of one recurrence.
    """
    size, place = len(graph.nodes), {at: number for number, at in enumerate(rounds.growths, 1)}
    below, carried = [0] * size, [0] * size
    count = 0
    for at, children in enumerate(graph.children):
        for child, _ in children:
            below[at], carried[at] = max(below[at], below[child]), max(carried[at], carried[child])
        if at in states:
            carried[at] = max(carried[at], below[at])
        if at in place:
            # In a round they may stand side by side: the state of the round before is enough.
            count += carried[at] >= max(place[at] - 2, 1)
            below[at] = place[at]
    return 2 * count >= len(place) - 1
