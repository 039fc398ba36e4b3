"""Which of several calls a place in the autograd graph hangs on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.autograd.graph import Node

from lightning_gradwatch.recurrent.graph.edges import Edge, below, number, oldest


class Latest:
    """Finds, for a place in the graph, the number of the latest call that it hangs on; −1 for none.

    Args:
        made: of each call, in their order, where its results were made. Operations older than all
            of these are not walked through.
    """

    def __init__(self, made: Sequence[Iterable[Edge | None]]) -> None:
        edges = [(edge, place) for place, of_call in enumerate(made) for edge in of_call if edge is not None]
        self._oldest = oldest(edge for edge, _ in edges)
        self._known: dict[Node, int] = {edge[0]: place for edge, place in edges}

    def __call__(self, edge: Edge | None) -> int:
        return -1 if edge is None else self._of(edge[0])

    def below(self, edge: Edge | None) -> int:
        """The same of what the operation at ``edge`` was given."""
        return -1 if edge is None else max(map(self._of, self._children(edge[0])), default=-1)

    def _of(self, start: Node) -> int:
        stack = [(start, False)]
        while stack:
            node, entered = stack.pop()
            if entered:
                self._known[node] = max((self._known.get(child, -1) for child in self._children(node)), default=-1)
            elif node not in self._known:
                stack.append((node, True))
                stack += [(child, False) for child in self._children(node)]
        return self._known[start]

    def _children(self, node: Node) -> list[Node]:
        return [child for child, _ in below(node) if number(child) >= self._oldest]
