"""What the loss sends to the last of several calls that continue one another, followed back through all of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.call import Edge, GradientSlot, RecurrentCall
from lightning_gradwatch.recurrent.measure.lags import first_met, obstacle
from lightning_gradwatch.recurrent.measure.rows import rows_are_mixed

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of a call's output, h_n and c_n."""


class Trail:
    """The lagged gradients of a chain's calls at their ends. It holds places in the graph and gradients, and no call.

    Attributes:
        totals_are_lagged: whether the loss reaches the chain through its last timestep alone.
        gradients: ∂L_τ/∂(output, h_n, c_n) of every call, τ being the last timestep that the loss reaches.
        inexact_reason: why there are none.
        mixed: whether a row of the state is not that of one sequence throughout.
    """

    def __init__(self, made: list[tuple[Edge | None, ...]]) -> None:
        self.totals_are_lagged = False
        self.gradients: list[Gradients] | None = None
        self.inexact_reason: str | None = None
        self.mixed = False
        self._made = made
        self._handles: list[RemovableHandle] = []

    def forget(self) -> None:
        """Follow nothing more, and let go of what was found."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._made, self.gradients = [], [], None

    def wait(self, last: int, roots: list[Edge], at_end: Callable[[Tensor], Tensor]) -> None:
        """When the backward pass has brought all that the loss sends to the ``roots`` of call ``last``, follow it back.

        Args:
            at_end: leaves of the output's gradient the part of the last timestep.
        """
        arrived: dict[Edge, Tensor | None] = {}
        reference = weakref.ref(self)

        def note(edge: Edge) -> Callable[[tuple[Tensor | None, ...]], None]:
            def hook(gradients: tuple[Tensor | None, ...]) -> None:
                trail = reference()
                if trail is None or GradientSlot.is_paused():
                    return
                sent = gradients[edge[1]]
                arrived[edge] = at_end(sent) if sent is not None and edge == trail._made[last][0] else sent
                if len(arrived) == len(roots):
                    trail._follow(last, arrived)
                    arrived.clear()

            return hook

        self._handles = [edge[0].register_prehook(cast("Callable[..., None]", note(edge))) for edge in roots]

    def _follow(self, last: int, arrived: dict[Edge, Tensor | None]) -> None:
        """Within the backward pass: the graph below is still there."""
        sent = {edge: gradient for edge, gradient in arrived.items() if gradient is not None}
        places = [edge for made in self._made[:last] for edge in made if edge is not None]
        found: dict[Edge, Tensor | None] = {}
        try:
            with GradientSlot.paused():
                gradients = torch.autograd.grad(
                    [GradientEdge(*edge) for edge in sent],
                    [GradientEdge(*edge) for edge in places],
                    list(sent.values()),
                    retain_graph=True,
                    allow_unused=True,
                )
            found.update(zip(places, gradients, strict=True))
        except Exception as error:  # whatever it is, it must not reach the training's own backward pass
            reason = str(error).strip().partition("\n")[0]
            self.inexact_reason = f"a second pass through it failed ({reason}); no lags were measured"
            return
        found.update(sent)
        self.gradients = [
            cast("Gradients", tuple(None if edge is None else found.get(edge) for edge in made))
            for made in self._made[: last + 1]
        ]


def follow(calls: Sequence[RecurrentCall], loss: Tensor) -> None:
    """Have the coming backward pass of ``loss`` measure what reaches each of ``calls``, a chain, from the last timestep that has a loss.

    Where the loss reaches the chain through that timestep alone, these are the total gradients. Otherwise, when all has arrived there,
    what lies between the calls is run through once more, as for a loop over a cell.
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
    trail.mixed = rows_are_mixed(calls[: last + 1]) if last else False
    single = end.timesteps() == 1
    if all(places[edge] == last for edge in met) and (single or output not in met):
        trail.totals_are_lagged = True
        return
    roots = [edge for edge in met if places[edge] == last]
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
