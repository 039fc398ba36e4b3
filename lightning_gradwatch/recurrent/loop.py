"""A recurrence that a model runs by itself, step by step: a cell in a Python loop, or hidden states marked with ``tap``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.padding import find_ends
from lightning_gradwatch.profile import FLOOR, Floats, Profile
from lightning_gradwatch.recurrent import equal_ends
from lightning_gradwatch.recurrent.anchors import norm, too_small
from lightning_gradwatch.recurrent.call import GradientSlot, is_handed_over
from lightning_gradwatch.recurrent.layout import pick_sequences


@dataclass(slots=True)
class LoopState:
    """One hidden state in the graph. Its slot is shown the *total* gradient: all that the state was used for.

    ``edge`` is the place in the graph where the state was made: it stays right when the tensor is changed in place later, but for
    a view, of which such a change makes another.
    """

    tensor: Tensor
    edge: GradientEdge
    slot: GradientSlot
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> LoopState:
        """Watch a state that needs a gradient."""
        slot = GradientSlot()
        slot.watch(tensor)
        return cls(tensor, get_gradient_edge(tensor), slot, tensor._version)

    def lost(self) -> bool:
        """Whether its place in the graph is no longer that of what was used."""
        return self.tensor._is_view() and self.tensor._version != self.version


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
    lagged: list[Tensor | None] | None = None
    """∂(d_T·h_T)/∂s of all h, then all c, once a backward pass has measured it."""
    totals_are_lagged: bool = False
    """Whether the loss reaches the states through the last one alone."""
    awaits: RemovableHandle | None = None
    """The hook that waits for a backward pass to measure ``lagged``."""
    inexact_reason: str | None = None
    step: int = 0
    """Optimizer steps done when it began."""
    doubt: str | None = None
    """Why a state may not be what the cell returned."""
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
        self.forget_lags()

    def forget_lags(self) -> None:
        """Measure no lagged gradients, and let go of those that were measured."""
        if self.awaits is not None:
            self.awaits.remove()
        self.lagged, self.totals_are_lagged, self.awaits = None, False, None

    def rows(self, tensor: Tensor) -> Tensor:
        """A state or its gradient as ``(sequence, width)``."""
        return tensor.detach().reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.detach().reshape(1, 1)


@torch.no_grad()
def loop_profiles(loop: Loop, max_sequences: int | None) -> list[Profile]:
    """The profiles of a loop's h, and of its c if it has one. They have no direct part: a hook on the state sees the total only.

    Where the batch changes in size from step to step, a row is taken for the same sequence as long as it is there. Measured are
    the sequences that the first step has; the lags, of those that the last one still has.
    """
    rows = [len(loop.rows(state.tensor)) for state in loop.h]
    reached = _reached(loop, rows[0])
    sequences = pick_sequences(reached, max_sequences)
    lengths = [next((t for t, count in enumerate(rows) if count <= j), len(rows)) for j in sequences]
    totals = _totals(loop, loop.h, sequences, lengths)
    runs = equal_ends.of_steps(loop.inputs, sequences, lengths)
    reason = loop.doubt or _lost(loop) or loop.inexact_reason or _small(loop, totals)
    if reason is None and not _rows_stay(loop, rows):
        reason = _ROWS_UNKNOWN
    made = partial(
        Profile,
        module=loop.module,
        call=loop.index,
        kind=loop.kind,
        layer=0,
        direction="forward",
        timesteps=len(rows),
        batch_size=max(rows),
        sequences=tuple(sequences),
        lengths=tuple(lengths),
        direct=None,
        curves=_curves(loop, [j for j, length in zip(sequences, lengths, strict=True) if length == len(rows)]),
        inexact_reason=reason,
        truncated=loop.cut_off(),
        fused=False,
        ends=find_ends(*runs, reverse=False, lengths=tuple(lengths), sent=totals, alone=loop.totals_are_lagged),
        handed_over=any(is_handed_over(state) for _, state in loop.given.get(0, ())),
        with_gradient=int(reached.sum()),
    )
    found = [made(state="h", total=totals)]
    if loop.c and loop.c_is_total:
        found.append(made(state="c", total=_totals(loop, loop.c, sequences, lengths)))
    return found


def _lost(loop: Loop) -> str | None:
    if any(state.lost() for state in (*loop.h, *loop.c)):
        return "a state that is a view of another tensor was changed in place, and its gradient was not seen"
    return None


def _small(loop: Loop, totals: Floats) -> str | None:
    """Whether gradients of those that a curve shows lie where their number format holds fewer digits."""
    normal = torch.finfo(loop.h[0].tensor.dtype).tiny
    within = totals[np.isfinite(totals)]
    small = (within > 0) & (within < normal) & (within >= FLOOR * within.max(initial=0.0))
    return too_small(normal) if small.any() else None


def _reached(loop: Loop, batch: int) -> Tensor:
    """Which of the sequences that the first step has get a gradient at any step: ``(batch,)``, boolean."""
    reached = torch.zeros(batch, dtype=torch.bool)
    for state in (*loop.h, *loop.c):
        gradient = state.slot.value()
        if gradient is not None:
            found = loop.rows(gradient).ne(0).any(-1).cpu()[:batch]
            reached[: len(found)] |= found
    return reached


_ROWS_UNKNOWN = (
    "its batch changes in size from step to step, and a row was only taken to be the same sequence throughout"
)


def _rows_stay(loop: Loop, rows: list[int]) -> bool:
    """Whether, wherever the batch changes in size, the rows that stay are the first ones, in order: as ``h[:n]`` leaves them."""
    for t in range(1, len(rows)):
        if rows[t] == rows[t - 1]:
            continue
        given, before = dict(loop.given.get(t, ())).get("h"), loop.h[t - 1].tensor
        stay = min(rows[t - 1 : t + 1])
        if given is None or not torch.equal(loop.rows(given)[:stay], loop.rows(before)[:stay]):
            return False
    return True


def _totals(loop: Loop, states: list[LoopState], sequences: list[int], lengths: list[int]) -> Any:
    """``(sequence, time)``, NaN past a sequence's end."""
    chosen, ends = torch.tensor(sequences), torch.tensor(lengths)
    found = torch.full((len(sequences), len(states)), torch.nan, dtype=torch.float64)
    for t, state in enumerate(states):
        there = ends > t
        found[there, t] = _norms(loop, state, state.slot.value())[chosen[there]]
    return found.numpy()


def _norms(loop: Loop, state: LoopState, gradient: Tensor | None) -> Tensor:
    """Of each row of a state's gradient, on the CPU; 0 where there is none."""
    if gradient is None:
        return torch.zeros(len(loop.rows(state.tensor)), dtype=torch.float64)
    return norm(loop.rows(gradient)).cpu().double()


def _curves(loop: Loop, sequences: list[int]) -> Any:
    """``(curve, lag)`` of those of the chosen sequences that the last step's loss reached."""
    states = [*loop.h, *loop.c]
    gradients = [state.slot.value() for state in states] if loop.totals_are_lagged else loop.lagged
    if gradients is None:
        return np.zeros((0, 0))
    pairs = zip(states, gradients, strict=True)
    norms = torch.stack([_norms(loop, state, gradient)[sequences] for state, gradient in pairs])
    if loop.c:
        norms = torch.hypot(*norms.unflatten(0, (2, -1)))  # an LSTM's state is h and c together
    curves = norms.flip(0).T
    reached = curves[curves[:, 0] != 0]
    return np.nan_to_num((reached / reached[:, :1]).numpy(), nan=np.inf, posinf=np.inf)
