"""What the loss sends to a loop's last state, followed back through all states before it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from lightning_gradwatch.recurrent.call import Edge, GradientSlot
from lightning_gradwatch.recurrent.loop import Loop, LoopState

PURE = ("torch._functorch", "torch._dynamo", "torch.autograd.graph", "lightning_gradwatch")
"""Whose Python code in the graph may run twice: compiled functions, ``save_on_cpu``, and our own, which rests meanwhile."""


def measure_lags(loop: Loop, loss: Tensor) -> None:
    """Have the coming backward pass of ``loss`` measure the loop's lagged gradients.

    d_T = ∂loss/∂h_T, where direct and total are the same thing; then ∂(d_T·h_T)/∂h_{T−k} for all k at once. That holds for any
    recurrence. Where the loss reaches the states through the last one alone, these are the total gradients. Otherwise, when the
    backward pass has come to h_T, what lies between the states is run through once more; nothing outside of them is, and nothing
    accumulates in a parameter, since no parameter is asked for. Code in the graph that may not run twice leaves the lags out.
    """
    loop.forget_lags()
    loop.inexact_reason = None
    if loss.grad_fn is None:
        return
    if _through_last_alone(loop, loss):
        loop.totals_are_lagged = True
        return
    states = _states(loop)
    edges = {_pair(state.edge) for state in states}
    loop.inexact_reason = obstacle([state.tensor for state in states], [_pair(loop.h[-1].edge)], edges)
    if loop.inexact_reason is not None:
        return
    edge, reference = loop.h[-1].edge, weakref.ref(loop)

    def follow(gradients: tuple[Tensor | None, ...]) -> None:
        loop, sent = reference(), gradients[edge.output_nr]
        if loop is not None and sent is not None and not GradientSlot.is_paused():
            _follow(loop, sent)

    loop.awaits = edge.node.register_prehook(cast("Any", follow))


def _follow(loop: Loop, sent: Tensor) -> None:
    """Within the backward pass: the loop's own graph is still there, and all that the loss sends to its last state has arrived."""
    loop.forget_lags()
    edges = [state.edge for state in _states(loop)]
    try:
        with GradientSlot.paused():
            found = torch.autograd.grad(edges[len(loop.h) - 1], edges, sent, retain_graph=True, allow_unused=True)
        loop.lagged = list(found)
    except Exception as error:  # whatever it is, it must not reach the training's own backward pass
        reason = str(error).strip().partition("\n")[0]
        loop.inexact_reason = f"a second pass through it failed ({reason}); no lags were measured"


def _states(loop: Loop) -> list[LoopState]:
    return [*loop.h, *loop.c]


def _pair(edge: GradientEdge) -> Edge:
    return edge.node, edge.output_nr


def oldest(edges: Iterable[Edge]) -> int:
    """Operations made before lead to none of these. (PyTorch counts them; a leaf has the largest number of all.)"""
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


def _through_last_alone(loop: Loop, loss: Tensor) -> bool:
    """Whether all that the loss sends to the states comes to h_T first. What bounds their gradients (a :class:`Limit`) is no part
    of the lagged ones.
    """
    if any(hook for state in _states(loop) for hook in _hooks(state.tensor) if _is_pure(hook)):
        return False
    return first_met(loss, {_pair(state.edge) for state in _states(loop)}) == {_pair(loop.h[-1].edge)}


def obstacle(tensors: Iterable[Tensor], roots: Iterable[Edge], edges: set[Edge]) -> str | None:
    """Why a second pass from ``roots`` to the other ``edges``, where ``tensors`` were made, would be felt; None where it would not."""
    reason = _obstacle(tensors, [node for node, _ in roots], edges)
    return None if reason is None else f"{reason}; no lags were measured"


def _obstacle(tensors: Iterable[Tensor], roots: list[Node], edges: set[Edge]) -> str | None:
    for tensor in tensors:
        if tensor.retains_grad:
            return "its states retain their gradients, which a second pass would add to"
        if not all(_is_pure(hook) for hook in _hooks(tensor)):
            return "a hook on its states would be called twice"
    for node in _between(roots, edges):
        function = getattr(type(node), "_forward_cls", None)
        if function is not None and not _is_pure(function):
            return f"the backward of {function.__name__} in it would run twice"
        for hook in _unpack_hooks(node):
            if hook.__module__ == "torch.utils.checkpoint":
                return (
                    "a part of it is recomputed in the backward pass (activation checkpointing) and would be so twice"
                )
            if not _is_pure(hook):
                return "a hook on what it saves for the backward pass would be called twice"
    return None


def _hooks(tensor: Tensor) -> list[Any]:
    return list((tensor._backward_hooks or {}).values())


def _is_pure(code: Any) -> bool:
    owner = getattr(code, "__self__", None)
    module = code.__module__ if owner is None else type(owner).__module__
    return (module or "").startswith(PURE)


def _between(roots: list[Node], edges: set[Edge]) -> list[Node]:
    """The nodes through which ``roots`` hang on the other states: children first."""
    states, first = {node for node, _ in edges}, oldest(edges)
    leads: dict[Node, bool] = {}
    stack = [(node, False) for node in roots]
    while stack:
        node, entered = stack.pop()
        children = [child for child, _ in below(node) if number(child) >= first]
        if entered:
            leads[node] = any(child in states or leads[child] for child in children)
        elif node not in leads:
            leads[node] = False
            stack.append((node, True))
            stack += [(child, False) for child in children]
    return [node for node, does in leads.items() if does]


def _unpack_hooks(node: Node) -> Iterator[Any]:
    """The hooks that bring back what an operation saved for its backward pass."""
    for name in _saved_by(type(node)):
        saved = getattr(node, name)
        for one in saved if isinstance(saved, tuple) else (saved,):
            hook = getattr(cast("Any", one), "unpack_hook", None)
            if hook is not None:
                yield hook


@cache
def _saved_by(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_raw_saved")]
