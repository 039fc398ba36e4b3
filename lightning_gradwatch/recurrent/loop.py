"""A recurrence that a model runs by itself, step by step: a cell in a Python loop, or hidden states marked with ``tap``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.padding import find_ends
from lightning_gradwatch.profile import Floats, Profile
from lightning_gradwatch.recurrent.call import GradientSlot, WeaklyHeld, is_handed_over
from lightning_gradwatch.recurrent.layout import pick_sequences
from lightning_gradwatch.recurrent.measure import equal_ends
from lightning_gradwatch.recurrent.measure.anchors import norm, too_small
from lightning_gradwatch.thresholds import FLOOR


@dataclass(slots=True)
class LoopState(WeaklyHeld):
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
        node = tensor.grad_fn
        edge = get_gradient_edge(tensor) if node is None else GradientEdge(node, tensor.output_nr)
        return cls(tensor, edge, slot, tensor._version)

    def lost(self) -> bool:
        """Whether its place in the graph is no longer that of what was used."""
        return self.tensor._is_view() and self.tensor._version != self.version


@dataclass(slots=True, eq=False)
class Made:
    """One call of a cell: its input, the states that it made, in the order of the loop's names, and those that it was given, by name,
    where these are not the very ones of the timestep before. ``number``: which of the calls of its timestep it is.
    """

    x: Tensor | None
    states: tuple[LoopState, ...]
    given: tuple[tuple[str, Tensor], ...] = ()
    number: int = 0


@dataclass(slots=True, eq=False)
class Loop(WeaklyHeld):
    """States that follow one another: one sequence of steps of a cell, or of a tap. References only, as in a recurrent call.

    Args:
        module: qualified name of the cell, or the tap's name.
        index: which sequence of that module within the training step.
        kind: ``RNN``, ``GRU``, ``LSTM``, or the class's name.
        names: of its states, the leading one first.
    """

    module: str
    index: int
    kind: str
    names: tuple[str, ...] = ("h",)
    steps: list[Made] = field(default_factory=list[Made])
    besides: dict[int, list[Made]] = field(default_factory=dict[int, list[Made]])
    """Timestep → further calls of the cell with the same state, which the sequence does not go on from."""
    goes_on: int = 0
    """Which of the calls of a timestep the sequence goes on from."""
    weights: tuple[tuple[str, Tensor], ...] = ()
    versions: tuple[int, ...] = ()
    lagged: list[Tensor | None] | None = None
    """∂(what the loss sends to the last timestep)/∂s of all states of one name, then of the next, once a backward pass has measured it."""
    totals_are_lagged: bool = False
    """Whether the loss reaches the states through those of one timestep alone."""
    anchor: int | None = None
    """The timestep from which the lags are followed: the last one that the loss reaches."""
    awaits: list[RemovableHandle] = field(default_factory=list[RemovableHandle])
    """The hooks that wait for a backward pass to measure ``lagged``."""
    mixed: bool = False
    """Whether a timestep's state was made of the results of several calls of the cell."""
    inexact_reason: str | None = None
    """Why lags could not be measured."""
    lift: float = 1.0
    """What the gradients in ``lagged`` were multiplied by."""
    step: int = 0
    """Optimizer steps done when it began."""
    doubt: str | None = None
    """Why a state may not be what the cell returned."""
    c_is_total: bool = True
    batch_dim: int | None = None

    def __post_init__(self) -> None:
        self.versions = self._versions()

    @property
    def h(self) -> list[LoopState]:
        """The leading state at each timestep."""
        return [made.states[0] for made in self.steps]

    @property
    def c(self) -> list[LoopState]:
        """The state of that name at each timestep; empty where there is none."""
        return dict(self.series).get("c", [])

    @property
    def inputs(self) -> list[Tensor | None]:
        """At each timestep."""
        return [made.x for made in self.steps]

    @property
    def series(self) -> list[tuple[str, list[LoopState]]]:
        """Each state by name, at each timestep."""
        return [(name, [made.states[i] for made in self.steps]) for i, name in enumerate(self.names)]

    @property
    def states(self) -> list[LoopState]:
        """All states of one name, then of the next."""
        return [made.states[i] for i in range(len(self.names)) for made in self.steps]

    def add(self, made: Made) -> None:
        """The next timestep."""
        if self.batch_dim is None:
            self.batch_dim = _batch_dim(made.states[0].tensor, made.x)
        self.steps.append(made)

    def begins_as(self, other: Loop) -> bool:
        """Whether both were given the same states at the first timestep, or the same input."""
        own, theirs = self.steps[0], other.steps[0]
        if own.given and [id(state) for _, state in own.given] == [id(state) for _, state in theirs.given]:
            return True
        x, y = own.x, theirs.x
        return x is not None and y is not None and x.data_ptr() == y.data_ptr() and x.shape == y.shape

    def add_beside(self, made: Made, step: int) -> None:
        """Another call with the state of the timestep before ``step``."""
        others = self.besides.setdefault(step, [])
        others.append(made)
        made.number = len(others)
        if made.number == self.goes_on and step == len(self.steps) - 1:
            self.go_on_from(made)

    def go_on_from(self, made: Made) -> None:
        """Take another call of the last timestep for the one that the sequence goes on from."""
        last, self.goes_on = len(self.steps) - 1, made.number
        others = self.besides[last]
        others[others.index(made)], self.steps[last] = self.steps[last], made

    def _versions(self) -> tuple[int, ...]:
        return tuple(weight._version for _, weight in self.weights)

    def weights_changed(self) -> bool:
        """Whether a weight was changed in place since the loop began."""
        return self._versions() != self.versions

    def has_gradient(self) -> bool:
        """Whether the loss reached any of its states."""
        return any(state.slot.arrived for made in self._made() for state in made.states)

    def cut_off(self) -> bool:
        """Whether its first step was given a state that says something and yet comes without a graph."""
        return any(not state.requires_grad and bool(state.detach().any()) for _, state in self.steps[0].given)

    def release(self) -> None:
        """Let go of the gradients, which the tensors' own hooks hold too."""
        for made in self._made():
            for state in made.states:
                state.slot.clear()
        self.forget_lags()

    def forget_lags(self) -> None:
        """Measure no lagged gradients, and let go of those that were measured."""
        for handle in self.awaits:
            handle.remove()
        self.lagged, self.totals_are_lagged, self.awaits, self.anchor = None, False, [], None

    def rows(self, tensor: Tensor) -> Tensor:
        """A state or its gradient as ``(sequence, width)``: the width is over all but the batch."""
        tensor = tensor.detach()
        if tensor.dim() < 2:
            return tensor.reshape(1, -1)
        return tensor.movedim(self.batch_dim or 0, 0).flatten(1)

    def _made(self) -> Iterator[Made]:
        yield from self.steps
        for others in self.besides.values():
            yield from others


def _batch_dim(state: Tensor, x: Tensor | None) -> int:
    """Which dimension of a state is the batch: the first, unless the input or the shape of PyTorch's own ``h_n`` says the second."""
    if state.dim() < 2:
        return 0
    if x is None:
        return int(state.dim() == 3 and state.shape[0] == 1)
    if not x.dim() or state.shape[0] == x.shape[0]:
        return 0
    return int(state.shape[1] in x.shape[:2])


@torch.no_grad()
def loop_profiles(loop: Loop, max_sequences: int | None) -> list[Profile]:
    """The profiles of a loop's states, one each. They have no direct part: a hook on the state sees the total only.

    Where the batch changes in size from step to step, a row is taken for the same sequence as long as it is there. Measured are
    the sequences that the first step has; the lags, of those that the last one still has.
    """
    rows = [len(loop.rows(state.tensor)) for state in loop.h]
    reached = _reached(loop, rows[0])
    sequences = pick_sequences(reached, max_sequences)
    lengths = [next((t for t, count in enumerate(rows) if count <= j), len(rows)) for j in sequences]
    series = [(name, states) for name, states in loop.series if [len(loop.rows(s.tensor)) for s in states] == rows]
    runs = equal_ends.of_steps(
        [None if x is None or x.dim() < 2 else loop.rows(x) for x in loop.inputs], sequences, lengths
    )
    totals = [_totals(loop, states, sequences, lengths) for _, states in series]
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
        curves=_curves(
            loop, series, [j for j, length in zip(sequences, lengths, strict=True) if length > _anchor(loop)]
        ),
        inexact_reason=_inexact(loop, rows, series, totals[0]),
        truncated=loop.cut_off(),
        fused=False,
        ends=find_ends(*runs, reverse=False, lengths=tuple(lengths), sent=totals[0], alone=loop.totals_are_lagged),
        handed_over=any(is_handed_over(state) for _, state in loop.steps[0].given),
        with_gradient=int(reached.sum()),
    )
    return [
        made(state=name, primary=not i, total=total)
        for i, ((name, _), total) in enumerate(zip(series, totals, strict=True))
        if loop.c_is_total or not i
    ]


def _lost(loop: Loop) -> str | None:
    if any(state.lost() for state in loop.states):
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
    for state in loop.states:
        gradient = state.slot.value()
        if gradient is not None:
            found = loop.rows(gradient).ne(0).any(-1).cpu()[:batch]
            reached[: len(found)] |= found
    return reached


_ROWS_UNKNOWN = (
    "its batch changes in size from step to step, and a row was only taken to be the same sequence throughout"
)
_MIXED = "it is called more than once in a timestep, and the next state is made of several of the results; measured is that of one"

Series = list[tuple[str, list[LoopState]]]


def _inexact(loop: Loop, rows: list[int], series: Series, totals: Any) -> str | None:
    left_out = [name for name in loop.names if name not in dict(series)]
    if left_out:
        return f"its state {left_out[0]} has no row for each sequence of the batch, and was left out"
    if loop.mixed:
        return _MIXED
    return (
        loop.doubt
        or _lost(loop)
        or loop.inexact_reason
        or _small(loop, totals)
        or (None if _rows_stay(loop, rows) else _ROWS_UNKNOWN)
    )


def _rows_stay(loop: Loop, rows: list[int]) -> bool:
    """Whether, wherever the batch changes in size, the rows that stay are the first ones, in order: as ``h[:n]`` leaves them."""
    for t in range(1, len(rows)):
        if rows[t] == rows[t - 1]:
            continue
        given, before = dict(loop.steps[t].given).get(loop.names[0]), loop.h[t - 1].tensor
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


def _curves(loop: Loop, series: Series, sequences: list[int]) -> Any:
    """``(curve, lag)`` of those of the chosen sequences that the loss reached at the anchor, of all states together."""
    until = _anchor(loop) + 1
    joint = torch.zeros(until, len(sequences), dtype=torch.float64)
    for i, name in enumerate(loop.names):
        states = dict(series).get(name)
        gradients = None if states is None else _lagged(loop, states, i)
        if states is None or gradients is None:
            continue
        pairs = zip(states[:until], gradients[:until], strict=True)
        joint = torch.hypot(joint, torch.stack([_norms(loop, state, gradient)[sequences] for state, gradient in pairs]))
    curves = joint.flip(0).T
    reached = curves[curves[:, 0] != 0]
    if not len(reached):
        return np.zeros((0, 0))
    return np.nan_to_num((reached / reached[:, :1]).numpy(), nan=np.inf, posinf=np.inf)


def _anchor(loop: Loop) -> int:
    """The timestep from which the lags are followed; the last one, where it is not known."""
    return len(loop.steps) - 1 if loop.anchor is None else loop.anchor


def _lagged(loop: Loop, states: list[LoopState], number: int) -> list[Tensor | None] | None:
    """The gradient that the loss of the last timestep sends to each of the ``number``-th states."""
    if loop.totals_are_lagged or len(states) == 1:  # at the last timestep itself, total and lagged are the same
        return [state.slot.value() for state in states]
    return None if loop.lagged is None else loop.lagged[number * len(states) :][: len(states)]
