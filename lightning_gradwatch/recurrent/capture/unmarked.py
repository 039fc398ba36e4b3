"""Recurrences that are written in tensor operations: no module is called in them, so
that no hook hears of them. The graph shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.graph.between import nodes_until
from lightning_gradwatch.recurrent.graph.edges import edge_of
from lightning_gradwatch.recurrent.graph.rounds import (
    Rounds,
    are_alike,
    are_carried_by,
    have_own_weights,
    uses_in_a_row,
    uses_that_join,
)
from lightning_gradwatch.recurrent.graph.topology import Topology
from lightning_gradwatch.recurrent.graph.uses import Uses, uses_of_parameters, uses_of_slices
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.scan import Scan

MOST_VISITS = 2_000_000
"""Places of a graph that are looked at in all: a second or two, once in a fit."""

FEWEST_IN_A_ROW = 3
"""So often a parameter must be used on what hangs on the use before."""

FEWEST_THAT_JOIN = 4
"""So many uses must join a chain one after the other, none of them lying on it."""

PUT_TOGETHER = 4
"""So many operations may make one tensor of the states of a loop, or read it out."""

ITSELF = "In one step this parameter is used {count} times in a row, each time on what hangs on the use before it."
JOINING = (
    "In one step what is made with this parameter joins a chain of operations {count} times, each time on top of the time "
    "before."
)
SLICES = (
    "In one step {count} slices of a tensor that was made with {leaf} join a chain of operations one by one, each on top of "
    "those before."
)


@dataclass(frozen=True, slots=True)
class Unmarked:
    """One recurrence that nobody measures.

    Args:
        name: of a parameter that it shows by; or of a place that it comes after.
        what: in a sentence, how.
        leaf: the parameter that is used in it; None where none is.
    """

    name: str
    what: str
    leaf: Tensor | None


def unmarked(graph: Topology, states: set[int], names: Mapping[int, str]) -> list[Unmarked] | None:
    """The recurrences behind a loss that nobody measures, each once; None where the search had to
    end before one was found. It walks through the whole graph, and changes nothing.

    Args:
        graph: behind the loss.
        states: as of :func:`states_in`.
        names: identity of a parameter → its qualified name.
    """
    recurrences = _Search(graph, states).recurrences()
    return None if recurrences is None else [_told(uses, rounds, names) for uses, rounds in recurrences]


def states_in(graph: Topology, calls: Iterable[RecurrentCall | Loop | Scan], numbers: Iterable[int]) -> set[int]:
    """The places in a graph where states that are measured were made.

    Args:
        numbers: of those of cells that are not watched yet.
    """
    return graph.places(_states(calls), numbers)


class _Search:
    """Through one graph.

    Args:
        states: where the states that are measured stand in it.
    """

    def __init__(self, graph: Topology, states: set[int]) -> None:
        self._graph, self._states = graph, states
        self._parameters = uses_of_parameters(graph)
        self._single = {uses.source for uses in self._parameters if len(uses.ranks) == 1}
        self._recurrences: list[tuple[Uses, Rounds]] = []
        self._left = MOST_VISITS

    def recurrences(self) -> list[tuple[Uses, Rounds]] | None:
        """One use and its chain for each recurrence; None where the search had to end before one
        was found.
        """
        for uses in self._of_count(self._parameters, FEWEST_IN_A_ROW):
            rounds = uses_in_a_row(self._graph, uses.ranks, self._states)
            self._take(uses, rounds if len(rounds) >= FEWEST_IN_A_ROW else None)
        for uses in self._of_count([*self._parameters, *uses_of_slices(self._graph)], FEWEST_THAT_JOIN):
            barriers = self._states.union(*(rounds.growths for _, rounds in self._recurrences))
            rounds = uses_that_join(self._graph, uses.ranks, barriers)
            long = len(rounds) >= FEWEST_THAT_JOIN and are_alike(self._graph, rounds)
            self._take(uses, rounds if long else None)
        return self._recurrences if self._recurrences or self._left > 0 else None

    def _of_count(self, all_uses: Iterable[Uses], fewest: int) -> Iterator[Uses]:
        for uses in all_uses:
            if len(set(uses.ranks.values())) >= fewest and self._left > 0:
                self._left -= len(self._graph.nodes)
                yield uses

    def _take(self, uses: Uses, rounds: Rounds | None) -> None:
        if rounds is None or have_own_weights(self._graph, rounds, self._single):
            return
        known = [self._states, *(set(other.growths) for _, other in self._recurrences)]
        self._left -= len(known) * len(self._graph.nodes)
        if not any(are_carried_by(self._graph, rounds, states) for states in known if states):
            self._recurrences.append((uses, rounds))


def _states(calls: Iterable[RecurrentCall | Loop | Scan]) -> set[Node]:
    nodes = set[Node]()
    for call in calls:
        if isinstance(call, RecurrentCall):
            nodes.update(edge[0] for edge in call.edges.made if edge is not None)
            nodes.update(_within(call) if call.by_operator else ())
        elif isinstance(call, Scan):
            nodes.update(_behind(call.node))
        else:
            nodes.update(state.edge.node for state in call.states)
    return nodes


def _within(call: RecurrentCall) -> list[Node]:
    """The operations of a call itself, which on a CPU goes through its timesteps one by one."""
    given = (call.edges.input, *call.edges.given, *map(edge_of, call.weights))
    made = [edge[0] for edge in call.edges.made if edge is not None]
    return nodes_until(made, {edge[0] for edge in given if edge is not None})


def _behind(node: Node | None) -> set[Node]:
    """What a scan's states were put together from, where a loop made them: within a few
    operations.
    """
    nodes = frontier = set[Node]() if node is None else {node}
    for _ in range(PUT_TOGETHER):
        frontier = {child for one in frontier for child, _ in one.next_functions if child is not None}
        nodes = nodes | frontier
    return nodes


def _told(uses: Uses, rounds: Rounds, names: Mapping[int, str]) -> Unmarked:
    shape = "×".join(map(str, uses.leaf.shape))
    name = names.get(id(uses.leaf), f"a parameter ({shape}) outside of the model")
    if uses.is_slices:
        behind = name.rpartition(".")[0] or name
        return Unmarked(f"a loop behind {behind}", SLICES.format(count=len(rounds), leaf=name), None)
    words = ITSELF if set(rounds.growths) <= uses.ranks.keys() else JOINING
    return Unmarked(name, words.format(count=len(rounds)), uses.leaf)
