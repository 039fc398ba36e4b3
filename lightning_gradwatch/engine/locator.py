"""Where numbers that are not finite began, in the model of one fit: what the
detectors ask is gathered here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_gradwatch.detect import CallSource, Context, LoopSource, NonfiniteSource, ScanSource, locate_nonfinite
from lightning_gradwatch.events import Event, Moment
from lightning_gradwatch.recurrent import Capture, Chain, Loop, Scan, stitch, sweep
from lightning_gradwatch.recurrent.capture.first_look import FirstLook
from lightning_gradwatch.recurrent.capture.modules import plain_name
from lightning_gradwatch.recurrent.capture.taken import Call
from lightning_gradwatch.recurrent.measure.gradient_norm import Norms, numbers

OVERFLOWS = math.sqrt(torch.finfo(torch.float32).max)
"""From this norm on the squares of a gradient do not fit float32."""


class Read(NamedTuple):
    """The gradients' norms of one step, and whose they are."""

    parameters: list[Tensor]
    norms: Norms


class Locator:
    """Asks the calls of a step where it began, and knows the names of what is trained.

    Args:
        model: its names are those of the events.
        capture: whose modules' parameters come first.
    """

    def __init__(self, model: nn.Module, capture: Capture) -> None:
        self._model, self._capture = model, capture

    def __call__(
        self,
        calls: Sequence[Call],
        moment: Moment,
        *,
        loss: Tensor | None,
        batch: Any,
        first: FirstLook | None,
        cells: Collection[str],
    ) -> Event | None:
        """The event that says where, if anything is not finite.

        Args:
            first: what was seen on the step on which cells are looked
                for, which are named by ``cells``.
        """
        context = Context(loss, batch, first and first.forward, first and first.backward, cells)
        value = None if loss is None else _worst(loss.detach().flatten())
        sources = [self._source(call, start) for call, start in _with_starts(calls)]
        return locate_nonfinite(sources, value, self.named(), moment, context)

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """All parameters by their names, those of the watched modules first."""
        watched = [
            (f"{name}.{parameter_name}", parameter)
            for name, module in self._capture.modules.items()
            for parameter_name, parameter in module.named_parameters()
        ]
        return watched + [(plain_name(name), parameter) for name, parameter in self._model.named_parameters()]

    def grown_most(self, step: Read, before: Sequence[Read], *, recurrent: bool) -> str:
        """In words, the parameter whose gradient grew most since the last step with a smaller norm,
        among those that make up the norm; empty where there was no such step, or none of them grew.

        Args:
            before: the steps before, the last one at the end.
        """
        size = _norm(step, recurrent)
        back = next((n for n, one in enumerate(reversed(before), 1) if _norm(one, recurrent) < size), None)
        if back is None:
            return ""
        then = dict(zip(map(id, before[-back].parameters), before[-back].norms.by_parameter, strict=True))
        count = step.norms.recurrent if recurrent else len(step.norms.by_parameter)
        now = zip(step.parameters[:count], step.norms.by_parameter[:count], strict=True)
        least = 0.1 * size
        grown = [(norm / max(then[id(p)], 1e-30), norm, p) for p, norm in now if norm >= least and id(p) in then]
        times, norm, parameter = max(grown, key=lambda one: one[0], default=(0.0, 0.0, None))
        if parameter is None or times <= 1:
            return ""
        name = next((name for name, weight in self.named() if weight is parameter), "one")
        when = "at the step before" if back == 1 else f"{back} steps before"
        return f"That of {name} grew most: to {norm:.3g} from {then[id(parameter)]:.3g} {when}."

    def _source(self, call: Call, start: int) -> NonfiniteSource:
        if isinstance(call, Loop):
            return LoopSource(call)
        if isinstance(call, Scan):
            return ScanSource(call)
        module = self._capture.modules[call.module]
        names = [f"{call.module}.{weight_name}" for layer in module._all_weights for weight_name in layer]  # pyright: ignore
        return CallSource(call, sweep(call, anchors=0, max_sequences=None, gates=True), names, start)


def _norm(read: Read, recurrent: bool) -> float:
    return read.norms.of_recurrent if recurrent else read.norms.whole


def _with_starts(calls: Sequence[Call]) -> list[tuple[Call, int]]:
    """Each call with the timestep at which it begins in the sequence that it belongs
    to, where it was fed in parts.
    """
    chains = [chain for chain in stitch(calls) if isinstance(chain, Chain)]
    starts = {id(call): start for chain in chains for call, start in chain.starts()}
    return [(call, starts.get(id(call), 0)) for call in calls]


def _worst(loss: Tensor) -> float | None:
    """The first entry that is not finite of a loss, which may be a vector; the
    first at all, where all are finite.
    """
    bad = loss[~loss.isfinite()]
    return next(map(float, (*bad[:1], *loss[:1])), None)


def wide_norm(parameters: Sequence[Tensor], scale: Tensor | float) -> float:
    """The norm of the gradients in float64, divided by the loss scale."""
    norms = [float(numbers(p.grad).double().norm()) for p in parameters if p.grad is not None]
    return math.hypot(*norms) / float(scale)


def unscaled(norms: Norms, parameters: Sequence[Tensor], scale: float) -> Norms:
    """The norms of gradients that a large loss scale alone kept out of float32, taken in float64;
    as they are where they would overflow without it too, or an entry is not finite.
    """
    found = [float(numbers(p.grad).double().norm()) / scale for p in parameters if p.grad is not None]
    wide = replace(norms, by_parameter=found)
    return wide if wide.whole < OVERFLOWS and len(found) == len(norms.by_parameter) else norms
