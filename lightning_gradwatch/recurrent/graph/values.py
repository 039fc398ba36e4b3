"""What operations worked on and made, as far as the graph keeps it for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradwatch.recurrent.graph.saved_hooks import TELLS_HOOKS, may_be_hooked
from lightning_gradwatch.recurrent.graph.topology import Topology, kind_of

_OPERANDS: dict[str, tuple[str | None, ...]] = {
    "Mm": ("self", "mat2"),
    "Addmm": (None, "mat1", "mat2"),
    "Bmm": ("self", "mat2"),
    "Baddbmm": (None, "batch1", "batch2"),
    "Mul": ("self", "other"),
    "Convolution": ("input", "weight", None),
}
"""Of a product, the name under which it saved each of its operands, in the order of its edges."""

_DEPTH = 4
"""From so many operations upon one another a value is worked out."""


class Operand(NamedTuple):
    """One factor of a product: its value, and the operation that made it; None where no gradient
    goes on to it.
    """

    value: Tensor
    made_by: Node | None


def operands(node: Node) -> list[Operand | None]:
    """The factors of a product by the places of its edges; None where one is not kept. Nothing of
    an operation that is no product.
    """
    names, edges = _OPERANDS.get(kind_of(node), ()), node.next_functions
    values = [None if name is None else _saved(node, name) for name in names[: len(edges)]]
    return [None if value is None else Operand(value, edge[0]) for value, edge in zip(values, edges, strict=False)]


class Values:
    """What the operations of a graph made, where it is kept or a few operations make it of what is.

    Args:
        graph: whose.
    """

    def __init__(self, graph: Topology) -> None:
        self._known: dict[Node, Tensor] = {
            one.made_by: one.value
            for node in graph.nodes
            for one in operands(node)
            if one is not None and one.made_by is not None and len(one.made_by.next_functions) > 0
        }

    def of(self, node: Node | None, depth: int = _DEPTH) -> Tensor | None:
        """Of one operation; None where it is not to be had."""
        if node is None or depth == 0:
            return None
        known = self._known.get(node)
        if known is None:
            known = _saved(node, "result")
        return self._made(node, depth - 1) if known is None else known

    def _made(self, node: Node, depth: int) -> Tensor | None:
        kind = kind_of(node)
        if kind not in ("Mul", "Add") or (kind == "Add" and getattr(node, "_saved_alpha", 1) != 1):
            return None
        given = list(self._given(node, kind, depth))
        if len(given) != 2 or given[0] is None or given[1] is None:
            return None
        return given[0] * given[1] if kind == "Mul" else given[0] + given[1]

    def _given(self, node: Node, kind: str, depth: int) -> Iterator[Tensor | None]:
        kept = operands(node) if kind == "Mul" else [None] * len(node.next_functions)
        for one, (child, _) in zip(kept, node.next_functions, strict=False):
            yield self.of(child, depth) if one is None else one.value


def _saved(node: Node, name: str) -> Tensor | None:
    """What an operation saved under a name; None where there is nothing, where it was changed
    since, and where a hook would have to bring it back.
    """
    raw: Any = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or (raw.unpack_hook is not None if TELLS_HOOKS else may_be_hooked()):
        return None
    try:
        value: Any = getattr(node, f"_saved_{name}")
    except RuntimeError:  # freed, or changed in place since
        return None
    return value.detach() if isinstance(value, Tensor) else None
