"""A recurrence that a model runs by itself, step by step: a cell in a Python loop, or hidden states marked with ``tap``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent.anchors import norm
from lightning_gradwatch.recurrent.call import GradientSlot
from lightning_gradwatch.recurrent.layout import pick_sequences


@dataclass(slots=True)
class LoopState:
    """One hidden state in the graph. Its slot is shown the *total* gradient: all that the state was used for.

    ``edge`` is the place in the graph where the state was made: it stays right when the tensor is changed in place later.
    """

    tensor: Tensor
    edge: GradientEdge
    slot: GradientSlot

    @classmethod
    def of(cls, tensor: Tensor) -> LoopState:
        """Watch a state that needs a gradient."""
        slot = GradientSlot()
        slot.watch(tensor)
        return cls(tensor, get_gradient_edge(tensor), slot)


@dataclass(slots=True, weakref_slot=True)
class Loop:
    """States that follow one another: one sequence of steps of a cell, or of a tap. References only, as in a recurrent call.

    Args:
        module: qualified name of the cell, or the tap's name.
        index: which sequence of that module within the training step.
        kind: ``RNN``, ``GRU``, ``LSTM``, or the class's name.
    """

    module: str
    index: int
    kind: str
    inputs: list[Tensor | None] = field(default_factory=list[Tensor | None])
    h: list[LoopState] = field(default_factory=list[LoopState])
    c: list[LoopState] = field(default_factory=list[LoopState])
    weights: tuple[tuple[str, Tensor], ...] = ()
    given: dict[int, tuple[tuple[str, Tensor], ...]] = field(default_factory=dict[int, tuple[tuple[str, Tensor], ...]])
    """Step → the states that it was given, by name (``h``, ``c``), where these are not the very ones of the step before."""
    versions: tuple[int, ...] = ()
    curves: Tensor | None = None
    """Lagged gradients of the last step ``(lag, sequence)``, once :func:`measure_lags` was called."""
    inexact_reason: str | None = None
    c_is_total: bool = True

    def __post_init__(self) -> None:
        self.versions = self._versions()

    def _versions(self) -> tuple[int, ...]:
        return tuple(weight._version for _, weight in self.weights)

    def weights_changed(self) -> bool:
        """Whether a weight was changed in place since the loop began."""
        return self._versions() != self.versions

    def has_gradient(self) -> bool:
        """Whether the loss reached any of its states."""
        return any(state.slot.arrived for state in (*self.h, *self.c))

    def cut_off(self) -> bool:
        """Whether its first step was given a state that says something and yet comes without a graph."""
        return any(not state.requires_grad and bool(state.detach().any()) for _, state in self.given.get(0, ()))

    def release(self) -> None:
        """Let go of the gradients, which the tensors' own hooks hold too."""
        for state in (*self.h, *self.c):
            state.slot.clear()

    def rows(self, tensor: Tensor) -> Tensor:
        """A state or its gradient as ``(sequence, width)``."""
        return tensor.detach().reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.detach().reshape(1, 1)


def measure_lags(loop: Loop, loss: Tensor) -> None:
    """Follow what the loss sends to the last state back through all states before it, by autograd; before the backward pass.

    d_T = ∂loss/∂h_T, where direct and total are the same thing; then ∂(d_T·h_T)/∂h_{T−k} for all k at once. That holds for any
    recurrence. Nothing accumulates in a parameter, since no parameter is asked for.
    """
    if any(state.tensor.retains_grad for state in (*loop.h, *loop.c)):
        loop.inexact_reason = (
            "its states retain their gradients, which a second pass would add to; no lags were measured"
        )
        return
    last = loop.h[-1]
    edges = [state.edge for state in (*loop.h, *loop.c)]
    with GradientSlot.paused():
        (reached,) = torch.autograd.grad(loss, last.edge, retain_graph=True, allow_unused=True)
        sent = cast("Tensor | None", reached)
        if sent is None:
            return
        found = torch.autograd.grad(last.edge, edges, grad_outputs=sent, retain_graph=True, allow_unused=True)
    with torch.no_grad():
        squares = [_squares(loop, gradient, last.tensor) for gradient in found]
        count = len(loop.h)
        steps = [h + c for h, c in zip(squares[:count], squares[count:], strict=True)] if loop.c else squares
        loop.curves = torch.stack(steps).sqrt().flip(0)


def _squares(loop: Loop, gradient: Tensor | None, like: Tensor) -> Tensor:
    rows = len(loop.rows(like))
    if gradient is None:
        return torch.zeros(rows, dtype=torch.float64)
    return norm(loop.rows(gradient)).cpu().double() ** 2


@torch.no_grad()
def loop_profiles(loop: Loop, max_sequences: int | None) -> list[Profile]:
    """The profiles of a loop's h, and of its c if it has one. They have no direct part: a hook on the state sees the total only."""
    batch = len(loop.rows(loop.h[0].tensor))
    sequences = pick_sequences(batch, max_sequences)
    curves = _curves(loop, sequences)
    found = [_profile(loop, "h", loop.h, batch, sequences, curves)]
    if loop.c and loop.c_is_total:
        found.append(_profile(loop, "c", loop.c, batch, sequences, curves))
    return found


def _profile(loop: Loop, state: str, states: list[LoopState], batch: int, sequences: list[int], curves: Any) -> Profile:
    total = torch.zeros(len(states), batch, dtype=torch.float64)
    for t, one in enumerate(states):
        gradient = one.slot.value()
        if gradient is not None:
            total[t] = norm(loop.rows(gradient)).cpu()
    return Profile(
        module=loop.module,
        call=loop.index,
        kind=loop.kind,
        layer=0,
        direction="forward",
        state=state,
        timesteps=len(states),
        batch_size=batch,
        sequences=tuple(sequences),
        lengths=(len(states),) * len(sequences),
        total=total[:, sequences].T.contiguous().numpy(),
        direct=None,
        curves=curves,
        inexact_reason=loop.inexact_reason,
        truncated=loop.cut_off(),
    )


def _curves(loop: Loop, sequences: list[int]) -> Any:
    """``(curve, lag)`` of the chosen sequences that the last step's loss reached."""
    if loop.curves is None:
        return np.zeros((0, 0))
    rows = loop.curves[:, sequences].T
    reached = rows[rows[:, 0] != 0]
    return np.nan_to_num((reached / reached[:, :1]).numpy(), nan=np.inf, posinf=np.inf)
