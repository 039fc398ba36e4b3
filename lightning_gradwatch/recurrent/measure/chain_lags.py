"""What the loss sends to the last of several calls that continue one another,
followed back through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.graph.edges import first_met
from lightning_gradwatch.recurrent.graph.second_pass import failed, obstacle
from lightning_gradwatch.recurrent.measure.rows import rows_are_mixed
from lightning_gradwatch.recurrent.trail import Trail


def follow(calls: Sequence[RecurrentCall], loss: Tensor) -> None:
    """Have the coming backward pass of ``loss`` measure what reaches each of ``calls``, a chain,
    from the last timestep that has a loss.

    Where the loss reaches the chain through that timestep alone, these are the total gradients.
    Otherwise, when all has arrived there, what lies between the calls is run through once more, as
    for a loop over a cell.
    """
    trail = Trail([call.edges.made for call in calls])
    for call in calls:
        call.trail = trail
    if loss.grad_fn is None:
        return
    places = {edge: place for place, call in enumerate(calls) for edge in call.edges.made if edge is not None}
    met = first_met(loss, set(places))
    if not met:
        return
    last = max(places[edge] for edge in met)
    end, output = calls[last], calls[last].edges.made[0]
    if end.limit is not None:
        trail.inexact_reason = "it is clipped through time; no lags were measured"
        return
    if any(call.finals_changed() and call.h_n._is_view() for call in calls):
        trail.inexact_reason = "a final state that is a view was changed in place; no lags were measured"
        return
    try:
        trail.mixed = rows_are_mixed(calls[: last + 1]) if last else False
    except RuntimeError as error:
        trail.inexact_reason = failed(error)
        return
    single = end.timesteps() == 1
    if all(places[edge] == last for edge in met) and (single or output not in met):
        trail.totals_are_lagged = True
        return
    made = zip(end.edges.made, (end.output, end.h_n, end.c_n), strict=True)
    roots = {edge: tensor for edge, tensor in made if edge in met and tensor is not None}
    tensors = [t for call in calls for t in (call.output, call.h_n, call.c_n) if t is not None]
    trail.inexact_reason = obstacle(tensors, roots, set(places))
    if trail.inexact_reason is None:
        trail.wait(last, roots, _last_timestep(end))


def _last_timestep(call: RecurrentCall) -> Callable[[Tensor], Tensor]:
    dim, count = call.time_dim(), call.timesteps()

    def at_end(gradient: Tensor) -> Tensor:
        if count == 1:
            return gradient
        kept = torch.zeros_like(gradient)
        kept.select(dim, count - 1).copy_(gradient.select(dim, count - 1))
        return kept

    return at_end
