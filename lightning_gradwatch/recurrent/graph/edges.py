"""Places in the autograd graph, and in which order they were made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Edge = tuple[Any, int]  # a node of an operation in C++ is not always an instance of Node
"""The place in the graph where a tensor was made. It stays right when the
tensor is changed in place later.
"""


def edge_of(tensor: Tensor | None) -> Edge | None:
    """Where a tensor was made; None of a leaf."""
    if tensor is None or tensor.grad_fn is None:
        return None
    return tensor.grad_fn, tensor.output_nr


def pair(edge: GradientEdge) -> Edge:
    """An edge as PyTorch gives it out, in the form that is compared here."""
    return edge.node, edge.output_nr


def oldest(edges: Iterable[Edge]) -> int:
    """Operations made before lead to none of these. (PyTorch counts them; a leaf
    has the largest number of all.)
    """
    numbers = [number(node) for node, _ in edges]
    return 0 if max(numbers, default=0) > 2**63 else min(numbers, default=0)


def number(node: Node) -> int:
    """When a node was made, as the autograd engine orders them."""
    return node._sequence_nr()  # pyright: ignore[reportPrivateUsage]


def below(node: Node) -> list[Edge]:
    """Where its gradient goes on to."""
    return [(child, place) for child, place in node.next_functions if child is not None]


def first_met(loss: Tensor, edges: set[Edge]) -> set[Edge]:
    """Those of ``edges`` that the loss reaches without passing through another of them."""
    assert loss.grad_fn is not None
    frontier, seen, met, first = [(loss.grad_fn, loss.output_nr)], set[Node](), set[Edge](), oldest(edges)
    while frontier:
        edge = frontier.pop()
        node = edge[0]
        if edge in edges:
            met.add(edge)
        elif node not in seen and number(node) >= first:
            seen.add(node)
            frontier += below(node)
    return met
