"""An autograd graph as numbered nodes, those that were made of nothing but parameters apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradwatch.recurrent.graph.edges import number
from lightning_gradwatch.recurrent.graph.ways_up import MOVING

SELECTING = ("Select", "Slice", "Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "Narrow")
"""Operations that take a part of a tensor, the same for any data."""

_LOOK_UP = ("Embedding", "Index", "IndexSelect", "Gather", "MaskedSelect", "Take")
"""Operations that read a tensor at places which data name; the graph does not show these."""

_HIDING = ("DifferentiableGraph",)
"""Operations, here TorchScript's, that have no edge for what needs no gradient: the graph does not
show whether they were given data."""

_PART = ("_saved_dim", "_saved_index", "_saved_start", "_saved_end", "_saved_step", "_saved_split_size")
"""Which part it is, as an operation notes it."""

Source = Hashable
"""What a value that hangs on parameters alone is: two with the same source are the same value."""


def kind_of(node: Node) -> str:
    """``AddmmBackward0`` → ``Addmm``."""
    name = node.name().rpartition("::")[2]
    return name.partition("Backward")[0].rstrip("0123456789") if "Backward" in name else name


def part_of(node: Node) -> tuple[object, ...]:
    """Which part a :data:`SELECTING` operation takes."""
    return (kind_of(node), *(getattr(node, name, None) for name in _PART))


class Topology:
    """The graph behind a loss, each node after all that its gradient goes on to.

    Attributes:
        nodes: in that order.
        children: of each node, where its gradient goes on to: the node's place and which of its
            outputs.
        users: of each node, how many others send it a gradient.
        kinds: of each node, its operation.
        sources: of each node that hangs on parameters alone, what it is; None of any other.
        leaves: source → the first parameter in it.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        place = {node: at for at, node in enumerate(nodes)}
        self.kinds = [kind_of(node) for node in nodes]
        self.children = [
            [(place[child], output) for child, output in node.next_functions if child is not None] for node in nodes
        ]
        self.users = [0] * len(nodes)
        for children in self.children:
            for child, _ in children:
                self.users[child] += 1
        self.leaves: dict[Source, Tensor] = {}
        self.sources: list[Source | None] = []
        for at in range(len(nodes)):
            self.sources.append(self._source(at))

    @classmethod
    def of(cls, loss: Tensor, most: int) -> Topology | None:
        """The graph behind a loss; None of one with more than ``most`` nodes."""
        order: list[Node] = []
        seen: set[Node] = set()
        stack = [(loss.grad_fn, False)]
        while stack:
            node, entered = stack.pop()
            if node is None or (not entered and node in seen):
                continue
            if entered:
                order.append(node)
                continue
            if len(seen) >= most:
                return None
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions]
        return cls(order)

    def places(self, nodes: Iterable[Node], numbers: Iterable[int]) -> set[int]:
        """Where these nodes stand, and those of these numbers."""
        wanted, numbered = set(nodes), set(numbers)
        return {at for at, node in enumerate(self.nodes) if node in wanted or number(node) in numbered}

    def edge_source(self, edge: tuple[int, int]) -> Source | None:
        """What arrives over an edge, where it hangs on parameters alone."""
        source = self.sources[edge[0]]
        return (
            source if source is None or self.kinds[edge[0]] not in SELECTING else self._known((source, edge[1]), source)
        )

    def _source(self, at: int) -> Source | None:
        variable = getattr(self.nodes[at], "variable", None)
        if variable is not None:
            return self._known((at,), None, variable)
        given = self.nodes[at].next_functions
        below = [self.edge_source(edge) for edge in self.children[at]]
        kind = self.kinds[at]
        if not below or None in below or len(below) < len(given) or kind in (*_LOOK_UP, *_HIDING):
            return None
        if kind in SELECTING:
            return self._known((below[0], *part_of(self.nodes[at])), below[0])
        if kind in MOVING and len(below) == 1:
            return below[0]
        return self._known((kind, *below), below[0])

    def _known(self, source: Source, below: Source | None, leaf: Tensor | None = None) -> Source:
        self.leaves.setdefault(source, self.leaves[below] if leaf is None else leaf)
        return source
