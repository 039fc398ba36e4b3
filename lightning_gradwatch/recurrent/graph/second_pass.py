"""Whether a part of the graph may be run through once more within the training's own
backward pass, without being felt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from lightning_gradwatch.recurrent.graph.edges import Edge, below, edge_of, number, oldest
from lightning_gradwatch.recurrent.graph.pure import is_pure
from lightning_gradwatch.recurrent.graph.saved_hooks import TELLS_HOOKS, may_be_hooked

STARTS_AT_EDGES = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 5)
"""Whether ``autograd.grad`` can begin at a place in the graph whose tensor is gone."""


def start(edge: Edge, tensor: Tensor | None) -> Tensor | GradientEdge:
    """What ``autograd.grad`` begins with at a place in the graph where ``tensor`` was made.

    Raises:
        RuntimeError: it can only begin at a tensor, and the tensor no longer stands for the place.
    """
    if STARTS_AT_EDGES:
        return GradientEdge(*edge)
    if tensor is None or edge_of(tensor) != edge:
        raise RuntimeError("PyTorch before 2.5 cannot begin at a state that was changed in place since")
    return tensor


def obstacle(tensors: Iterable[Tensor], roots: Iterable[Edge], edges: set[Edge]) -> str | None:
    """Why a second pass from ``roots`` to the other ``edges``, where ``tensors`` were made, would
    be felt; None where it would not.
    """
    reason = _obstacle(tensors, [node for node, _ in roots], edges)
    return None if reason is None else f"{reason}; no lags were measured"


def failed(error: Exception) -> str:
    """Why there are no lags, where a second pass ended in an error."""
    return f"a second pass through it failed ({str(error).strip().partition(chr(10))[0]}); no lags were measured"


def _obstacle(tensors: Iterable[Tensor], roots: list[Node], edges: set[Edge]) -> str | None:
    for tensor in tensors:
        if tensor.retains_grad:
            return "its states retain their gradients, which a second pass would add to"
        if not all(is_pure(hook) for hook in hooks_on(tensor)):
            return "a hook on its states would be called twice"
    for node in _between(roots, edges):
        function = getattr(type(node), "_forward_cls", None)
        if function is not None and not is_pure(function):
            return f"the backward of {function.__name__} in it would run twice"
        if not TELLS_HOOKS and may_be_hooked() and _saved_by(type(node)):
            return (
                "this training has hooks on saved tensors, as activation checkpointing has, and PyTorch before 2.10 cannot tell whether "
                "they are on this loop's, where they would be called twice"
            )
        for hook in _unpack_hooks(node):
            if hook.__module__ == "torch.utils.checkpoint":
                return (
                    "a part of it is recomputed in the backward pass (activation checkpointing) and would be so twice"
                )
            if not is_pure(hook):
                return "a hook on what it saves for the backward pass would be called twice"
    return None


def hooks_on(tensor: Tensor) -> list[Any]:
    """The backward hooks of a tensor."""
    return list((tensor._backward_hooks or {}).values())


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
