"""What is at hand of a step besides its recurrent calls: the batch, the loss with its
graph, a first look at every module.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradwatch.detect.batch import BadEntry, bad_entries
from lightning_gradwatch.detect.suspects import Suspect, remedies, suspects, told
from lightning_gradwatch.detect.way_back import WayBack, hidden_gradient, in_arithmetic, made_in_arithmetic
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.capture.first_look import Arrived, NonfiniteForward
from lightning_gradwatch.recurrent.graph.between import nodes_between, nodes_until

_FILL = (
    "Look at this entry of the data: fill it in, leave it out, or mask it before the arithmetic of the loss, since NaN times 0 is NaN. "
    "{clipper} skips such a step."
)
_PERHAPS = (
    "If that entry of the batch enters the loss, it is the cause: leave it out, or mask it before the arithmetic."
)


@dataclass(frozen=True)
class Context:
    """What else is at hand.

    Args:
        loss: with its graph.
        batch: as the training step was given it.
        made, arrived: the first number that is not finite that any module made, or was sent
            back, where that was looked for.
        cells: the modules that turned out to be cells in that look.
    """

    loss: Tensor | None = None
    batch: Any = None
    made: NonfiniteForward | None = None
    arrived: Arrived | None = None
    cells: Collection[str] = ()


def made_by_cell(context: Context, moment: Moment) -> Event | None:
    """The state of a cell that is not finite though all that it was given is."""
    made = context.made
    if made is None or made.module not in context.cells:
        return None
    return moment.event(
        EventKind.NONFINITE_STATE,
        module=made.module,
        layer=0,
        direction="forward",
        timestep=made.call,
        sequence=made.sequence,
        value=made.value,
        **made_in_arithmetic(made.nodes),
    )


def arrived_at_cell(context: Context, moment: Moment, way: WayBack) -> Event | None:
    """The gradient of a cell's state that is not finite, nearest to the loss."""
    arrived = context.arrived
    if arrived is None or arrived.module not in context.cells:
        return None
    if arrived.later is None:
        words = way.outside([arrived.node])
    else:
        step, size, node = arrived.later
        words = in_arithmetic(size, step, nodes_between([node], [arrived.node]), only=False)
    place = {
        "module": arrived.module,
        "layer": 0,
        "direction": "forward",
        "state": "h",
        "timestep": arrived.call,
        "sequence": arrived.sequence,
        "value": arrived.value,
    }
    return hidden_gradient(moment, {**place, **words})


def with_source(event: Event, context: Context, sizes: Collection[int]) -> Event:
    """The event of an input that is not finite, with where it comes from: an entry of
    the batch, or a module before.
    """
    entries = bad_entries(context.batch, sizes)
    if entries:
        return _more(event, f"The batch itself holds it, or another like it: {entries[0].told}.")
    return _more(event, _came_from(context))


def bad_loss(value: float, moment: Moment, context: Context, sizes: Collection[int], states: Collection[Node]) -> Event:
    """The event of a loss that is not finite though every recurrent state is.

    Args:
        sizes: numbers of sequences that the recurrent modules were given; none where
            there was no recurrent module.
        states: where the recurrent states stand in the graph, behind which nothing is looked for.
    """
    entries = None if context.batch is None else bad_entries(context.batch, sizes)
    lead = f"The loss is {value}" + (" although every recurrent input and state is finite" if sizes else "")
    if entries and math.isnan(value) and math.isnan(entries[0].value):
        return _loss_event(value, moment, f"{lead}, and the batch holds a NaN: {entries[0].told}.", _FILL)
    named = suspects(nodes_until([None if context.loss is None else context.loss.grad_fn], states), of_loss=True)
    parts = [f"{lead}.", _of_batch(entries), _came_from(context), told(named)]
    return _loss_event(value, moment, " ".join(filter(None, parts)), _mend(named, entries, moment))


def _of_batch(entries: Sequence[BadEntry] | None) -> str:
    if entries is None:
        return ""
    if not entries:
        return "No such number was found in the batch."
    return f"The batch holds a number that is not finite, which may or may not enter the loss: {entries[0].told}."


def _came_from(context: Context) -> str:
    made = context.made
    return "" if made is None else f"The first such number came out of {made.module}, from a finite input."


def _mend(named: list[Suspect], entries: Sequence[BadEntry] | None, moment: Moment) -> str:
    parts = [_PERHAPS if entries else "", remedies(named) or EventKind.NONFINITE_LOSS.remedy_with(moment.tools)]
    return " ".join(filter(None, parts))


def _loss_event(value: float, moment: Moment, message: str, remedy: str) -> Event:
    return moment.event(EventKind.NONFINITE_LOSS, value=value, message=message, remedy=remedy)


def _more(event: Event, sentence: str) -> Event:
    return dataclasses.replace(event, message=f"{event.message} {sentence}") if sentence else event
