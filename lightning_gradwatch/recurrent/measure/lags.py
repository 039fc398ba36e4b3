"""What the loss sends to a loop's last state, followed back through all states before it."""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.graph.edges import Edge, first_met, pair
from lightning_gradwatch.recurrent.graph.pure import is_pure
from lightning_gradwatch.recurrent.graph.second_pass import failed, hooks_on, obstacle, start
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.measure.anchors import lift_of, norm
from lightning_gradwatch.recurrent.pause import is_paused, paused


def measure_lags(loop: Loop, loss: Tensor) -> None:
    """Have the coming backward pass of ``loss`` measure the loop's lagged gradients.

    What the loss sends to the states of the last timestep that it reaches, where direct and total
    are the same thing, is followed back to all states before: with one state h, d_T = ∂loss/∂h_T
    and then ∂(d_T·h_T)/∂h_{T−k} for all k at once. That holds for any recurrence. Where the loss
    reaches the states through those of one timestep alone, these are the total gradients.
    Otherwise, when the backward pass has come there, what lies between the states is run through
    once more; nothing outside of them is, and nothing accumulates in a parameter, since no
    parameter is asked for. Code in the graph that may not run twice leaves the lags out.
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
    # A bound on the gradient is no part of the lags; beyond the leading state, what it left
    # cannot be told from what was sent.
    followed = 1 if _is_bounded(loop) else len(loop.names)
    for step in range(len(loop.steps)):
        for number in range(followed):
            loop.awaits.append(_wait(loop, step, number))


def _wait(loop: Loop, step: int, number: int) -> RemovableHandle:
    """A hook on one of the states of a timestep, which follows what arrives there if
    nothing has arrived at a later one.
    """
    edge, reference = loop.steps[step].states[number].edge, weakref.ref(loop)

    def follow(gradients: tuple[Tensor | None, ...]) -> None:
        loop, sent = reference(), gradients[edge.output_nr]
        if loop is None or sent is None or is_paused() or loop.anchor not in (None, step):
            return
        if loop.anchor is None and bool(sent.any()):
            loop.anchor = step
        if loop.anchor == step:
            _follow(loop, step, number, sent)

    return edge.node.register_prehook(cast("Any", follow))


def _follow(loop: Loop, step: int, number: int, sent: Tensor) -> None:
    """Within the backward pass: the loop's own graph is still there, and all that is
    sent to this state has arrived.

    What came to it from another state of the timestep that was followed before (h of an LSTM
    hangs on c) is in the sums already.
    """
    states, before = loop.states, loop.lagged
    at = number * len(loop.steps) + step
    try:
        known = None if before is None else before[at]
        if before is None:
            loop.lift = lift_of(float(norm(sent.flatten())), sent.dtype)  # ratios are what is measured
        sent = sent * loop.lift
        direct = sent if known is None else sent - known
        if known is not None and not bool(direct.any()):
            return
        edges = [state.edge for state in states]
        begin = start(pair(edges[at]), states[at].tensor)
        with paused():
            gradients = torch.autograd.grad(begin, edges, direct, retain_graph=True, allow_unused=True)
        loop.lagged = (
            list(gradients) if before is None else [_sum(a, b) for a, b in zip(before, gradients, strict=True)]
        )
    except Exception as error:  # whatever it is, it must not reach the training's own backward pass
        loop.forget_lags()
        loop.inexact_reason = failed(error)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _is_bounded(loop: Loop) -> bool:
    """Whether a :class:`Limit` acts on the states' gradients."""
    return any(is_pure(hook) for state in loop.states for hook in hooks_on(state.tensor))


def _edges(loop: Loop) -> set[Edge]:
    return {pair(state.edge) for state in loop.states}


def _last(loop: Loop) -> set[Edge]:
    """Where the states of the last timestep were made."""
    return {pair(state.edge) for state in loop.steps[-1].states}


def _reached_alone(loop: Loop, loss: Tensor) -> int | None:
    """The timestep to whose states all comes first that the loss sends to any; None where there are
    several. What bounds their gradients (a :class:`Limit`) is no part of the lagged ones.
    """
    if _is_bounded(loop):
        return None
    met = first_met(loss, _edges(loop))
    steps = [step for step, made in enumerate(loop.steps) if any(pair(state.edge) in met for state in made.states)]
    return steps[0] if len(steps) == 1 else None
