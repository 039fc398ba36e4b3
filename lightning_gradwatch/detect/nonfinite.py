"""Where a NaN or an infinity began: the first place in causal order, batch → forward → loss →
backward through time → parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from lightning_gradwatch.detect.context import Context, arrived_at_cell, bad_loss, made_by_cell, with_source
from lightning_gradwatch.detect.remedy import SPOILT_WEIGHT
from lightning_gradwatch.detect.way_back import WayBack, bad_gradient
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.measure.gradient_norm import local


class NonfiniteSource(Protocol):
    """Something that computed in this step, and can be asked what went wrong in it."""

    def in_forward(self, moment: Moment) -> Event | None:
        """The first number of its forward that is not finite."""
        ...

    def in_backward(self, moment: Moment, way: WayBack) -> Event | None:
        """The first on the way back, as seen from the loss; ``way`` knows what lies between."""
        ...

    def nodes(self) -> list[Node]:
        """Where its states stand in the graph."""
        ...

    def sequences(self) -> int:
        """How many it was given."""
        ...

    def changed(self) -> bool:
        """Whether its weights are no longer those of the forward; then
        they tell nothing of the cause.
        """
        ...


def locate_nonfinite(
    sources: Sequence[NonfiniteSource],
    loss: float | None,
    parameters: Iterable[tuple[str, nn.Parameter]],
    moment: Moment,
    context: Context | None = None,
) -> Event | None:
    """The one event that says where non-finite numbers began on this step; None if there are none.

    Args:
        sources: all recurrent calls and loops of the step, in the order of their forwards.
        loss: its value; None if it is not known.
        parameters: whose gradients to look through when nothing was found before them. One that is
            not finite itself is named as the cause of whatever was found, in whichever module it
            sits.
        context: what else is at hand of the step.
    """
    named = list(parameters)
    event = _first(sources, loss, named, moment, context or Context())
    if event is None or event.parameter is not None or any(source.changed() for source in sources):
        return event
    cause = bad_parameter((name, local(parameter)) for name, parameter in named)
    if not cause:
        return event
    return dataclasses.replace(event, message="", **{**cause, "remedy": moment.tools.fill(cause["remedy"])})


def _first(
    sources: Sequence[NonfiniteSource],
    loss: float | None,
    parameters: Sequence[tuple[str, nn.Parameter]],
    moment: Moment,
    context: Context,
) -> Event | None:
    event = next(filter(None, (source.in_forward(moment) for source in sources)), None)
    fed = event is not None and event.kind == EventKind.NONFINITE_INPUT
    of_cell = made_by_cell(context, moment) if event is None or fed else None
    if of_cell is not None:
        return of_cell
    sizes = {source.sequences() for source in sources}
    if event is not None:
        return with_source(event, context, sizes) if fed else event
    if loss is not None and not math.isfinite(loss):
        states = {node for source in sources for node in source.nodes()}
        return bad_loss(loss, moment, context, sizes, states)
    return _on_the_way_back(sources, parameters, moment, context, WayBack(context.loss, loss))


def _on_the_way_back(
    sources: Sequence[NonfiniteSource],
    parameters: Sequence[tuple[str, nn.Parameter]],
    moment: Moment,
    context: Context,
    way: WayBack,
) -> Event | None:
    for source in reversed(sources):
        event = source.in_backward(moment, way)
        if event is not None:
            return event
    event = arrived_at_cell(context, moment, way)
    if event is not None:
        return event
    for name, parameter in parameters:
        gradient = None if parameter.grad is None else local(parameter.grad)
        if gradient is not None and not bool(_numbers(gradient).isfinite().all()):
            value = bad_value(_numbers(gradient))
            texts = bad_gradient(name, parameter, value, way, seen=bool(sources))
            return moment.event(EventKind.NONFINITE_GRADIENT, parameter=name, value=value, **texts)
    return None


def _numbers(gradient: Tensor) -> Tensor:
    return gradient._values() if gradient.is_sparse else gradient


def bad_parameter(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """The first weight that is not finite, if any: then it is the
    cause, whatever it spoils first.
    """
    bad = bad_weight(weights)
    if bad is None:
        return {}
    name, entry, value, count = bad
    detail = f"The cause is {name}[{entry}] = {value}.{other_places(count, ' ')}"
    return {"parameter": name, "detail": detail, "remedy": SPOILT_WEIGHT}


def bad_weight(weights: Iterable[tuple[str, Tensor]]) -> tuple[str, str, float, int] | None:
    """Name, index and value of the first entry of a weight that is not finite, and
    how many of that weight's are so.
    """
    for name, weight in weights:
        if _is_clearly_finite(weight):
            continue
        finite = weight.detach().isfinite()
        if not bool(finite.all()):
            bad = torch.nonzero(~finite)
            at = bad[0].tolist()
            return name, ", ".join(map(str, at)), float(weight.detach()[tuple(at)]), len(bad)
    return None


def _is_clearly_finite(weight: Tensor) -> bool:
    """In one pass that writes nothing. It does not say so where squares overflow, nor of tensors
    with rules of their own.
    """
    plain = type(weight) in (Tensor, nn.Parameter) and weight.layout is torch.strided
    if not plain or weight.dtype not in (torch.float32, torch.float64):
        return False
    return bool(torch.linalg.vector_norm(weight.detach()).isfinite())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def gate_name(mode: str, gate: int) -> str:
    """How an event names a gate of that number, in PyTorch's order: ``gate f``. A plain recurrence
    has one, which needs no letter.
    """
    letters = {"LSTM": "ifgo", "GRU": "rzn"}.get(mode)
    return f"gate {letters[gate]}" if letters else "gate"


def bad_value(tensor: Tensor) -> float:
    """The first entry that is not finite."""
    flat = tensor.detach().flatten()
    return float(flat[~flat.isfinite()][0])


def other_places(count: int, before: str = "") -> str:
    """How many places are so, if it is more than the one that is named."""
    return f"{before}In all, {count} places are so." if count > 1 else ""
