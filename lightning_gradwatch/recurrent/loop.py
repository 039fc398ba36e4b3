"""A recurrence that a model runs by itself, step by step: a cell in a Python loop, or
hidden states marked with ``tap``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.gradient_slot import GradientSlot
from lightning_gradwatch.recurrent.initial_state import is_cell_cut, is_truncated
from lightning_gradwatch.recurrent.weakly_held import WeaklyHeld


@dataclass(slots=True)
class LoopState(WeaklyHeld):
    """One hidden state in the graph. Its slot is shown the *total* gradient:
    all that the state was used for.

    ``edge`` is the place in the graph where the state was made: it stays right when the tensor is
    changed in place later, but for a view, of which such a change makes another.
    """

    tensor: Tensor
    edge: GradientEdge
    slot: GradientSlot
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> LoopState:
        """Watch a state that needs a gradient."""
        return cls.made(tensor, tensor.grad_fn, tensor.output_nr, tensor._version)

    @classmethod
    def made(cls, tensor: Tensor, node: Any, number: int, version: int, slot: GradientSlot | None = None) -> LoopState:
        """A state that was that result of an operation, and had that version then.

        Args:
            slot: where its gradient is kept; None watches it from now on.
        """
        edge = get_gradient_edge(tensor) if node is None else GradientEdge(node, number)
        if slot is None:
            slot = GradientSlot()
            slot.watch_at(tensor, node, number)
        return cls(tensor, edge, slot, version)

    def lost(self) -> bool:
        """Whether its place in the graph is no longer that of what was used."""
        return self.tensor._is_view() and self.tensor._version != self.version


@dataclass(slots=True, eq=False)
class Made(WeaklyHeld):
    """One call of a cell: its input, the states that it made, in the order of the loop's names, and
    those that it was given, by name, where these are not the very ones of the timestep before.
    ``number``: which of the calls of its timestep it is.
    """

    x: Tensor | None
    states: tuple[LoopState, ...]
    given: tuple[tuple[str, Tensor], ...] = ()
    number: int = 0


@dataclass(slots=True, eq=False)
class Loop(WeaklyHeld):
    """States that follow one another: one sequence of steps of a cell, or of a tap.
    References only, as in a recurrent call.

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
    """Timestep → further calls of the cell with the same state, which
    the sequence does not go on from.
    """
    goes_on: int = 0
    """Which of the calls of a timestep the sequence goes on from."""
    weights: tuple[tuple[str, Tensor], ...] = ()
    versions: tuple[int, ...] = ()
    lagged: list[Tensor | None] | None = None
    """∂(what the loss sends to the last timestep)/∂s of all states of one name, then of the next,
    once a backward pass has measured it.
    """
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
        ours, theirs = self.steps[0], other.steps[0]
        if ours.given and [id(state) for _, state in ours.given] == [id(state) for _, state in theirs.given]:
            return True
        x, y = ours.x, theirs.x
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
        return any(slot.arrived for slot in self.slots())

    def slots(self) -> list[GradientSlot]:
        """Of all states."""
        return [state.slot for made in self._made() for state in made.states]

    def is_truncated(self) -> bool:
        """Whether its first step was given a state that says something
        and yet comes without a graph.
        """
        return any(is_truncated(state) for _, state in self.steps[0].given)

    def is_cell_cut(self) -> bool:
        """Whether the cell state of an LSTM comes in without a graph, and h with one."""
        given = [dict(made.given) for made in self.steps[1:]]
        return "c" in self.names and is_cell_cut((one.get("h"), one.get("c")) for one in given)

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
    """Which dimension of a state is the batch: the first, unless the input or the shape of
    PyTorch's own ``h_n`` says the second.
    """
    if state.dim() < 2:
        return 0
    if x is None:
        return int(state.dim() == 3 and state.shape[0] == 1)
    if not x.dim() or state.shape[0] == x.shape[0]:
        return 0
    return int(state.shape[1] in x.shape[:2])
