"""The first number that is not finite in a scan: in what goes into it, in its states, or on the way
back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradwatch.detect.nonfinite import bad_value
from lightning_gradwatch.detect.way_back import WayBack, hidden_gradient, largest_number, on_the_way
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.measure.anchors import norm
from lightning_gradwatch.recurrent.measure.diagonal import adjoint
from lightning_gradwatch.recurrent.measure.scan_reader import ScanReader
from lightning_gradwatch.recurrent.scan import Scan

GROWTH_REMEDY = (
    "Decays over 1 multiply the gradient at every timestep: keep |a| under 1 (a sigmoid, exp(-softplus(…))), lower the learning rate, "
    "or use {clip}."
)
STATE_REMEDY = (
    "If a parameter is named, it is not finite: go back to a checkpoint from before it was spoilt. Otherwise an infinite state outgrew its "
    "number format: keep |a| at 1 or under, or use a wider dtype. A NaN is made inside of the scan: in log space it takes the logarithm of "
    "0 or of a negative number, and a division by a product of decays divides by 0 once that product has underflowed."
)


@dataclass(frozen=True, slots=True)
class ScanSource:
    """A scan, asked for the first place in its own order."""

    scan: Scan

    def in_forward(self, moment: Moment) -> Event | None:
        """The first timestep where its decay, its inputs or its states are not finite."""
        scan, changed = self.scan, self.scan.changed()
        for name, tensor, detail in self._given():
            place = None if name in changed else self._place(tensor)
            if place is not None:
                return moment.event(EventKind.NONFINITE_INPUT, **place, detail=detail)
        place = None if "state" in changed else self._place(self._lay(scan.state))
        if place is None:
            return None
        event = moment.event(EventKind.NONFINITE_STATE, **place, remedy=STATE_REMEDY)
        if scan.inputs is not None:
            return event
        what = "states" if scan.readout is None else "output"
        message = f"The {what} of {event.place} {'are' if scan.readout is None else 'is'} {event.value} in the forward pass, with a "
        return replace(event, message=f"{message}finite decay; what the scan adds was not given.")

    def _given(self) -> Iterator[tuple[str, Tensor, str]]:
        """What goes into it: by name, time first, and in a sentence."""
        scan, shape = self.scan, self.scan.shape
        yield "decay", shape.time_first(scan.decay), "It is the decay."
        if scan.inputs is not None:
            yield "inputs", shape.time_first(scan.inputs), "It is what the scan adds."
        if scan.readout is not None:
            yield "readout", shape.readout_time_first(scan.readout, scan.state), "It is what reads its states out."

    def in_backward(self, moment: Moment, way: WayBack) -> Event | None:
        """The last timestep to which the loss sends what is not finite, or at which the gradient
        overflows.
        """
        gradient = self.scan.slot.value()
        if gradient is None:
            return None
        place = self._place(self._lay(gradient), back=True)
        if place is not None:
            return hidden_gradient(moment, {**place, **way.outside(self.nodes())})
        overflow = self._overflow()
        if overflow is not None:
            return hidden_gradient(moment, overflow)
        node = self.scan.node
        way.passed(self.nodes(), [] if node is None else [below for below, _ in node.next_functions])
        return None

    @torch.no_grad()
    def _overflow(self) -> dict[str, Any] | None:
        """Where the recurrence takes a finite gradient beyond the largest number of its format."""
        every, largest = range(self.sequences()), largest_number(self.scan.state)
        reader = ScanReader(self.scan, every)
        total = torch.zeros(reader.timesteps, len(every), dtype=torch.float64)
        for channels in reader.chunks():
            totals = adjoint(reader.decay(channels), reader.direct(channels))
            total = torch.hypot(total, norm(totals.abs()).cpu().double())
        over = torch.nonzero((total > largest).any(1)).flatten()
        if not len(over) or int(over[-1]) + 1 >= reader.timesteps:
            return None
        step = int(over[-1])
        row = int(total[step].argmax())
        entered = next((float(size) for size in total[:, row].flip(0) if size), 0.0)
        time = self._time(step)
        words = on_the_way(entered, float(total[step + 1, row]), largest, self._time(step + 1))
        if words is None:
            return None
        return {**self._where(), "timestep": time, "sequence": row, "value": math.inf, **words, "remedy": GROWTH_REMEDY}

    def nodes(self) -> list[Node]:
        """Where its states stand in the graph."""
        return [] if self.scan.node is None else [self.scan.node]

    def sequences(self) -> int:
        """How many it was given."""
        return self.scan.shape.sequences

    def changed(self) -> bool:
        """It has no weights."""
        return False

    def _lay(self, tensor: Tensor) -> Tensor:
        shape = self.scan.shape
        return shape.time_first(tensor) if self.scan.readout is None else shape.output_time_first(tensor)

    def _time(self, step: int) -> int:
        return self.scan.shape.timesteps - 1 - step if self.scan.reverse else step

    def _place(self, tensor: Tensor, *, back: bool = False) -> dict[str, Any] | None:
        """The first timestep in its own order, or the last one, that is not finite in
        ``(time | 1, batch | 1, …)``.
        """
        rows = tensor.flatten(2)
        bad = torch.nonzero(~rows.isfinite().all(-1))
        if not len(bad):
            return None
        time = int(bad[:, 0].max() if self.scan.reverse != back else bad[:, 0].min())
        row = int(bad[bad[:, 0] == time][0, 1])
        numbers = torch.view_as_real(rows[time, row]) if rows.is_complex() else rows[time, row]
        return {
            **self._where(),
            "timestep": time if len(rows) > 1 else None,
            "sequence": row if rows.shape[1] > 1 or self.sequences() == 1 else None,
            "value": bad_value(numbers),
        }

    def _where(self) -> dict[str, Any]:
        direction = "reverse" if self.scan.reverse else "forward"
        return {"module": self.scan.module, "layer": 0, "direction": direction, "state": "h"}
