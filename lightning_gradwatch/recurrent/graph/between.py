"""What lies between two places of an autograd graph: read off its nodes, whose numbers
are gone after the backward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor, nn
from torch.autograd.graph import Node

MOST_NODES = 200_000
"""A larger graph is walked no further."""


def nodes_between(roots: Iterable[Node | None], targets: Collection[Node], past: Collection[Node] = ()) -> list[Node]:
    """The nodes on a way from a root to a target, nearest to the roots first, both left out.

    Args:
        roots: nodes from which the gradient flows; None are passed over.
        targets: where it arrives; nothing behind one is looked at.
        past: nodes that no way may lead through.
    """
    order, users = _reachable([root for root in roots if root is not None], targets, past)
    leading = {target for target in targets if target in users}
    waiting = list(leading)
    while waiting:
        for user in users[waiting.pop()]:
            if user not in leading:
                leading.add(user)
                waiting.append(user)
    return [node for node in order if node in leading and node not in targets]


def nodes_until(roots: Iterable[Node | None], stops: Collection[Node]) -> list[Node]:
    """All nodes that a root's gradient reaches without passing through a stop, nearest to the
    roots first; the stops left out.
    """
    return _reachable([root for root in roots if root is not None], [], stops)[0]


def leads_to_weights(tensor: Tensor) -> bool:
    """Whether a parameter is behind a tensor, or may be: a graph may be too large to be seen
    whole.
    """
    nodes = nodes_until([tensor.grad_fn], [])
    leaves = (getattr(node, "variable", None) for node in nodes)
    return len(nodes) >= MOST_NODES or any(isinstance(leaf, nn.Parameter) for leaf in leaves)


def come_from_itself(states: Iterable[Tensor | None], weights: Iterable[Tensor]) -> bool:
    """Whether states that come in were made with the very weights that they go into, as those that
    an earlier backward pass went back through. It walks through the graph: for sampled steps.
    """
    nodes = nodes_until([state.grad_fn for state in states if state is not None], [])
    behind = {id(getattr(node, "variable", None)) for node in nodes}
    return any(id(weight) in behind for weight in weights)


def is_reached(roots: Iterable[Node | None], target: Node, past: Collection[Node] = ()) -> bool:
    """Whether a gradient can flow from a root to the target without passing through ``past``."""
    return target in _reachable([root for root in roots if root is not None], [target], past)[1]


def _reachable(
    roots: list[Node], targets: Collection[Node], past: Collection[Node]
) -> tuple[list[Node], dict[Node, list[Node]]]:
    """Nodes by distance, and for each those that send it a gradient."""
    users: dict[Node, list[Node]] = {root: [] for root in roots if root not in past}
    order = list(users)
    for node in order:  # it grows as we go
        if node in targets:
            continue
        for below, _ in node.next_functions:
            if below is None or below in past:
                continue
            if below not in users:
                if len(order) >= MOST_NODES:
                    return order, users
                users[below] = []
                order.append(below)
            users[below].append(node)
    return order, users
