"""Where a NaN or an infinity began: the first place in causal order, batch → forward → loss → backward through time → parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_gradwatch.detect.remedy import SPOILT_WEIGHT
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.monitor import local


class Place(Protocol):
    """Something that computed in this step, and can be asked what went wrong in it."""

    def in_forward(self, moment: Moment) -> Event | None:
        """The first number of its forward that is not finite."""
        ...

    def in_backward(self, moment: Moment) -> Event | None:
        """The first on the way back, as seen from the loss."""
        ...

    def changed(self) -> bool:
        """Whether its weights are no longer those of the forward; then they tell nothing of the cause."""
        ...


def locate_nonfinite(
    places: Sequence[Place],
    loss: float | None,
    parameters: Iterable[tuple[str, nn.Parameter]],
    moment: Moment,
) -> Event | None:
    """The one event that says where non-finite numbers began on this step; None if there are none.

    Args:
        places: all recurrent calls and loops of the step, in the order of their forwards.
        loss: its value; None if it is not known.
        parameters: whose gradients to look through when nothing was found before them. One that is not finite itself is
            named as the cause of whatever was found, in whichever module it sits.
    """
    named = list(parameters)
    found = _first(places, loss, named, moment)
    if found is None or found.parameter is not None or any(place.changed() for place in places):
        return found
    cause = bad_parameter((name, local(parameter)) for name, parameter in named)
    return dataclasses.replace(found, message="", **cause) if cause else found


def _first(
    places: Sequence[Place], loss: float | None, parameters: Iterable[tuple[str, nn.Parameter]], moment: Moment
) -> Event | None:
    for place in places:
        found = place.in_forward(moment)
        if found is not None:
            return found
    if loss is not None and not math.isfinite(loss):
        return moment.event(EventKind.NONFINITE_LOSS, value=loss)
    for place in reversed(places):
        found = place.in_backward(moment)
        if found is not None:
            return found
    for name, parameter in parameters:
        gradient = None if parameter.grad is None else local(parameter.grad)
        if gradient is not None and not bool(gradient.isfinite().all()):
            return moment.event(EventKind.NONFINITE_GRADIENT, parameter=name, value=bad_value(gradient))
    return None


def bad_parameter(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """The first weight that is not finite, if any: then it is the cause, whatever it spoils first."""
    found = bad_weight(weights)
    if found is None:
        return {}
    name, entry, value, count = found
    detail = f"The cause is {name}[{entry}] = {value}.{other_places(count, ' ')}"
    return {"parameter": name, "detail": detail, "remedy": SPOILT_WEIGHT}


def bad_weight(weights: Iterable[tuple[str, Tensor]]) -> tuple[str, str, float, int] | None:
    """Name, index and value of the first entry of a weight that is not finite, and how many of that weight's are so."""
    for name, weight in weights:
        finite = weight.detach().isfinite()
        if not bool(finite.all()):
            bad = torch.nonzero(~finite)
            at = bad[0].tolist()
            return name, ", ".join(map(str, at)), float(weight.detach()[tuple(at)]), len(bad)
    return None


def gate_name(mode: str, gate: int) -> str:
    """How an event names a gate of that number, in PyTorch's order: ``gate f``. A plain recurrence has one, which needs no letter."""
    letters = {"LSTM": "ifgo", "GRU": "rzn"}.get(mode)
    return f"gate {letters[gate]}" if letters else "gate"


def bad_value(tensor: Tensor) -> float:
    """The first entry that is not finite."""
    flat = tensor.detach().flatten()
    return float(flat[~flat.isfinite()][0])


def other_places(count: int, before: str = "") -> str:
    """How many places are so, if it is more than the one that is named."""
    return f"{before}In all, {count} places are so." if count > 1 else ""
