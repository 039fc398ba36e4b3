"""Short ways up the autograd graph: from a tensor to what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lightning_gradwatch.recurrent.graph.edges import Edge

T = TypeVar("T")

REACH = 8
"""How many operations may lie between a state that comes out and the same state when it
goes in again (a mask, a norm).
"""

MOVING = (
    "Alias",
    "AsStrided",
    "Cat",
    "Clone",
    "Copy",
    "CopySlices",
    "Div",
    "Expand",
    "Flip",
    "FusedDropout",
    "Gather",
    "Index",
    "IndexPut",
    "IndexSelect",
    "MaskedFill",
    "MaskedSelect",
    "Movedim",
    "Mul",
    "NativeDropout",
    "Permute",
    "Repeat",
    "ReshapeAlias",
    "Roll",
    "Select",
    "Slice",
    "Split",
    "SplitWithSizes",
    "Squeeze",
    "Stack",
    "T",
    "ToCopy",
    "Transpose",
    "Unbind",
    "UnsafeSplit",
    "UnsafeView",
    "Unsqueeze",
    "View",
    "Where",
)
"""Operations that move a state about, mask it or scale it, by the
names of their nodes in the graph.
"""

HEAVY = (
    "Addbmm",
    "Addmm",
    "Addmv",
    "Baddbmm",
    "Bmm",
    "Convolution",
    "Cudnn",
    "Dot",
    "Embedding",
    "Linear",
    "Miopen",
    "Mkldnn",
    "Mm",
    "Mv",
    "Scaled",
    "Thnn",
)
"""Operations that begin something new: products, convolutions, attention, fused recurrences."""


def above(
    edge: Edge, wanted: Mapping[int, T], *, stop: tuple[str, ...] | None = None, only: tuple[str, ...] | None = None
) -> list[T]:
    """Which of the nodes ``wanted``, by their numbers in the graph, lie within
    :data:`REACH` operations above ``edge``.

    Args:
        stop: nodes with names that begin so are not passed through.
        only: nodes with other names are not.
    """
    reached: dict[int, T] = {}
    frontier, seen = [edge], {edge}
    for _ in range(REACH):
        below: list[Edge] = []
        for one, place in frontier:
            number = one._sequence_nr()  # pyright: ignore[reportPrivateUsage]
            if number in wanted:
                reached[number] = wanted[number]
                continue
            kind = one.name().partition("Backward")[0]
            if (stop and kind.startswith(stop)) or (only and kind.rstrip("0123456789") not in only):
                continue
            new = [child for child in _made_of(one, place, wanted) if child not in seen]
            seen.update(new)
            below += new
        frontier = below
    return list(reached.values())


def _made_of(node: Any, place: int, wanted: Mapping[int, Any]) -> list[Edge]:
    """Where one of a node's outputs came from: of what takes a part of a stack, that part alone."""
    given = [(child, output) for child, output in node.next_functions if child is not None]
    if len(given) != 1 or not node.name().startswith(("Select", "Unbind")):
        return given
    stack: Any = given[0][0]
    is_stack = stack.name().startswith("Stack") and stack._sequence_nr() not in wanted
    if not is_stack or stack._saved_dim != node._saved_dim:
        return given
    index = getattr(node, "_saved_index", place)
    parts = stack.next_functions
    part = parts[index - 2**64 if index >= 2**63 else index]  # a negative one, as an operation notes it
    return [] if part[0] is None else [part]
