"""Whether several tensors are slices of one: how a sequence is fed timestep by timestep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from torch import Tensor, nn
from torch.autograd.graph import Node

DEPTH = 6
"""How many operations may lie between a slice and its use (an
embedding, a layer, an activation).
"""

Origin = Node | int
"""An operation that made something which several tensors come from; or the
memory of a tensor without a graph.
"""


def have_common_origin(tensors: Sequence[Tensor]) -> bool:
    """Whether all of ``tensors`` come, within a few operations, from one tensor that is no
    parameter. It looks into the graph, which must not have been used up by a backward pass yet.
    """
    common: set[Origin] | None = None
    for tensor in tensors:
        sources = set(origins(tensor))
        common = sources if common is None else common & sources
        if not common:
            return False
    return len({id(tensor) for tensor in tensors}) > 1


def origins(tensor: Tensor) -> Iterator[Origin]:
    """What a tensor comes from, within a few operations; no parameter."""
    if tensor.grad_fn is None:
        if not isinstance(tensor, nn.Parameter):
            yield _memory(tensor)
        return
    frontier: list[Node] = [tensor.grad_fn]
    for _ in range(DEPTH):
        below: list[Node] = []
        for node in frontier:
            if hasattr(node, "variable"):  # a leaf's: every use of a weight has it in common
                continue
            yield node
            yield from map(_memory, _saved_data(node))
            below += [child for child, _ in node.next_functions if child is not None]
        frontier = below


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _saved_data(node: Node) -> Iterator[Tensor]:
    """What an operation saved of tensors without a graph, as indices or an input, unless
    bringing it back would be felt.
    """
    for name in _saved_by(type(node)):
        try:
            if getattr(getattr(node, f"_raw{name}"), "unpack_hook", None) is None:
                saved = getattr(node, name)
                if isinstance(saved, Tensor) and not saved.requires_grad and saved.numel():
                    yield saved
        except (RuntimeError, AttributeError):  # used up, or changed in place
            continue


@cache
def _saved_by(kind: type) -> list[str]:
    names = [name.removeprefix("_raw") for name in dir(kind) if name.startswith("_raw_saved")]
    return [name for name in names if hasattr(kind, name)]
