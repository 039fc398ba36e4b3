"""Short ways up the autograd graph: from a tensor to what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch.autograd.graph import Node

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
    node: Node, wanted: Mapping[int, T], *, stop: tuple[str, ...] | None = None, only: tuple[str, ...] | None = None
) -> list[T]:
    """Which of the nodes ``wanted``, by their numbers in the graph, lie within
    :data:`REACH` operations above ``node``.

    Args:
        stop: nodes with names that begin so are not passed through.
        only: nodes with other names are not.
    """
    reached: list[T] = []
    frontier, seen = [node], {node}
    for _ in range(REACH):
        below: list[Node] = []
        for one in frontier:
            number = one._sequence_nr()  # pyright: ignore[reportPrivateUsage]
            if number in wanted:
                reached.append(wanted[number])
                continue
            kind = one.name().partition("Backward")[0]
            if (stop and kind.startswith(stop)) or (only and kind.rstrip("0123456789") not in only):
                continue
            new = [child for child, _ in one.next_functions if child is not None and child not in seen]
            seen.update(new)
            below += new
        frontier = below
    return reached
