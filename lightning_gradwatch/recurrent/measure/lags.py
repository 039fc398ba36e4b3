"""What the loss sends to a loop's last state, followed back through all states before it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.call import Edge, GradientSlot
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.measure.anchors import lift_of, norm

PURE = ("torch._functorch", "torch._dynamo", "torch.autograd.graph", "lightning_gradwatch")
"""Whose Python code in the graph may run twice: compiled functions, ``save_on_cpu``, and our own, which rests meanwhile."""


TELLS_HOOKS = hasattr(cast("Any", torch)._C._autograd.SavedTensor, "unpack_hook")
"""Whether PyTorch shows the hooks on what an operation saved for its backward pass."""


STARTS_AT_EDGES = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 5)
"""Whether ``autograd.grad`` can begin at a place in the graph whose tensor is gone."""


def measure_lags(loop: Loop, loss: Tensor) -> None:
    """Have the coming backward pass of ``loss`` measure the loop's lagged gradients.

    What the loss sends to the states of the last timestep that it reaches, where direct and total are the same thing, is followed back
    to all states before: with one state h, d_T = ∂loss/∂h_T and then ∂(d_T·h_T)/∂h_{T−k} for all k at once. That holds for any
    recurrence. Where the loss reaches the states through those of one timestep alone, these are the total gradients. Otherwise, when
    the backward pass has come there, what lies between the states is run through once more; nothing outside of them is, and nothing
    accumulates in a parameter, since no parameter is asked for. Code in the graph that may not run twice leaves the lags out.
    """
    loop.forget_lags()
    loop.inexact_reason = None
    if loss.grad_fn is None or len(loop.steps) < 2:
        return
    loop.anchor = _reached_alone(loop, loss)
    if loop.anchor is not None:
        loop.totals_are_lagged = True
        return
    loop.inexact_reason = obstacle([state.tensor for state in loop.states], _last(loop), _edges(loop))
    if loop.inexact_reason is not None:
        return
    # A bound on the gradient is no part of the lags; beyond the leading state, what it left cannot be told from what was sent.
    followed = 1 if _is_bounded(loop) else len(loop.names)
    for step in range(len(loop.steps)):
        for number in range(followed):
            loop.awaits.append(_wait(loop, step, number))


def _wait(loop: Loop, step: int, number: int) -> RemovableHandle:
    """A hook on one of the states of a timestep, which follows what arrives there if nothing has arrived at a later one."""
    edge, reference = loop.steps[step].states[number].edge, weakref.ref(loop)

    def follow(gradients: tuple[Tensor | None, ...]) -> None:
        loop, sent = reference(), gradients[edge.output_nr]
        if loop is None or sent is None or GradientSlot.is_paused() or loop.anchor not in (None, step):
            return
        if loop.anchor is None and bool(sent.any()):
            loop.anchor = step
        if loop.anchor == step:
            _follow(loop, step, number, sent)

    return edge.node.register_prehook(cast("Any", follow))


def _follow(loop: Loop, step: int, number: int, sent: Tensor) -> None:
    """Within the backward pass: the loop's own graph is still there, and all that is sent to this state has arrived.

    What came to it from another state of the timestep that was followed before (h of an LSTM hangs on c) is in the sums already.
    """
    states, before = loop.states, loop.lagged
    own = number * len(loop.steps) + step
    try:
        known = None if before is None else before[own]
        if before is None:
            loop.lift = lift_of(float(norm(sent.flatten())), sent.dtype)  # ratios are what is measured
        sent = sent * loop.lift
        direct = sent if known is None else sent - known
        if known is not None and not bool(direct.any()):
            return
        edges = [state.edge for state in states]
        with GradientSlot.paused():
            found = torch.autograd.grad(edges[own], edges, direct, retain_graph=True, allow_unused=True)
        loop.lagged = list(found) if before is None else [_sum(a, b) for a, b in zip(before, found, strict=True)]
    except Exception as error:  # whatever it is, it must not reach the training's own backward pass
        reason = str(error).strip().partition("\n")[0]
        loop.forget_lags()
        loop.inexact_reason = f"a second pass through it failed ({reason}); no lags were measured"


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _is_bounded(loop: Loop) -> bool:
    """Whether a :class:`Limit` acts on the states' gradients."""
    return any(_is_pure(hook) for state in loop.states for hook in _hooks(state.tensor))


def _edges(loop: Loop) -> set[Edge]:
    return {_pair(state.edge) for state in loop.states}


def _last(loop: Loop) -> set[Edge]:
    """Where the states of the last timestep were made."""
    return {_pair(state.edge) for state in loop.steps[-1].states}


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


def _reached_alone(loop: Loop, loss: Tensor) -> int | None:
    """The timestep to whose states all comes first that the loss sends to any; None where there are several. What bounds their gradients
    (a :class:`Limit`) is no part of the lagged ones.
    """
    if _is_bounded(loop):
        return None
    met = first_met(loss, _edges(loop))
    steps = [step for step, made in enumerate(loop.steps) if any(_pair(state.edge) in met for state in made.states)]
    return steps[0] if len(steps) == 1 else None


def obstacle(tensors: Iterable[Tensor], roots: Iterable[Edge], edges: set[Edge]) -> str | None:
    """Why a second pass from ``roots`` to the other ``edges``, where ``tensors`` were made, would be felt; None where it would not."""
    if not STARTS_AT_EDGES:
        return "PyTorch before 2.5 cannot run a part of the graph a second time; no lags were measured"
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
        if not TELLS_HOOKS and _saved_by(type(node)):
            return "PyTorch before 2.10 cannot tell whether code of the model's own, as in activation checkpointing, would run twice"
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
