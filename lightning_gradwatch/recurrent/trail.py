"""What the loss sends to the last of several calls that continue one
another, at the ends of all of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.graph.edges import Edge
from lightning_gradwatch.recurrent.graph.second_pass import STARTS_AT_EDGES, failed, start
from lightning_gradwatch.recurrent.pause import is_paused, paused

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of a call's output, h_n and c_n."""


class Trail:
    """The lagged gradients of a chain's calls at their ends. It holds places in the
    graph and gradients, and no call; before PyTorch 2.5 the last one's results, too.

    Attributes:
        totals_are_lagged: whether the loss reaches the chain through its last timestep alone.
        gradients: ∂L_τ/∂(output, h_n, c_n) of every call, τ being the last
            timestep that the loss reaches.
        inexact_reason: why there are none.
        mixed: whether a row of the state is not that of one sequence throughout.
    """

    def __init__(self, made: list[tuple[Edge | None, ...]]) -> None:
        self.totals_are_lagged = False
        self.gradients: list[Gradients] | None = None
        self.inexact_reason: str | None = None
        self.mixed = False
        self._made = made
        self._tensors: dict[Edge, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def forget(self) -> None:
        """Follow nothing more, and let go of what was found."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._made, self.gradients = [], [], None
        self._tensors.clear()

    def wait(self, last: int, roots: dict[Edge, Tensor], at_end: Callable[[Tensor], Tensor]) -> None:
        """When the backward pass has brought all that the loss sends to the ``roots`` of
        call ``last``, follow it back.

        Args:
            roots: with what was made there.
            at_end: leaves of the output's gradient the part of the last timestep.
        """
        if not STARTS_AT_EDGES:
            self._tensors = roots
        arrived: dict[Edge, Tensor | None] = {}
        reference = weakref.ref(self)

        def note(edge: Edge) -> Callable[[tuple[Tensor | None, ...]], None]:
            def hook(gradients: tuple[Tensor | None, ...]) -> None:
                trail = reference()
                if trail is None or is_paused():
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
        by_edge: dict[Edge, Tensor | None] = {}
        try:
            begin = cast("Any", [start(edge, self._tensors.get(edge)) for edge in sent])
            with paused():
                gradients = torch.autograd.grad(
                    begin,
                    [GradientEdge(*edge) for edge in places],
                    list(sent.values()),
                    retain_graph=True,
                    allow_unused=True,
                )
            by_edge.update(zip(places, gradients, strict=True))
        except Exception as error:  # whatever it is, it must not reach the training's own backward pass
            self.inexact_reason = failed(error)
            return
        by_edge.update(sent)
        self.gradients = [
            cast("Gradients", tuple(None if edge is None else by_edge.get(edge) for edge in made))
            for made in self._made[: last + 1]
        ]
