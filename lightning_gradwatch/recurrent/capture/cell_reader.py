"""What is kept of a cell's call while nobody needs to know which sequence it is part of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from lightning_gradwatch.recurrent.capture.slots import Slots, arguments

Given = tuple[str, Tensor, Any]
"""A state that a call was given: its name, itself, and the operation that made it."""

Result = tuple[str, Tensor, Any, int, int]
"""A state that a call made: its name, itself, the operation that made it, which of its results it
is, and its version.
"""


class Beginning(NamedTuple):
    """What a sequence is said to have begun with."""

    weights: tuple[tuple[str, Tensor], ...]
    versions: tuple[int, ...]
    step: int


class StateCall(NamedTuple):
    """One call of a cell; without a reader, one state that was marked by a tap. ``begins`` is None
    where it goes on from the call right before it.
    """

    name: str
    reader: CellReader | None
    x: Tensor | None
    given: list[Given]
    made: list[Result]
    begins: Beginning | None


def result(name: str, state: Tensor) -> Result:
    """A state as it was made."""
    return name, state, state.grad_fn, state.output_nr, state._version


class CellReader:
    """Reads the calls of one cell: by position where they are plain tensors and tuples, as they
    nearly always are; else by all paths that there are.

    Args:
        name: of the cell.
        clock: optimizer steps done so far.
    """

    def __init__(self, name: str, module: nn.Module, slots: Slots, clock: Callable[[], int]) -> None:
        self.name, self.module, self.slots = name, module, slots
        self._clock = clock
        self._last: dict[int, Result] = {}
        self._owners: list[tuple[str, Mapping[str, Tensor], str]] = []
        places = None if slots.given is None else _positions(slots.given, slots.parameters)
        self._given = (
            None if places is None else [(name, *place) for name, place in zip(slots.names, places, strict=False)]
        )
        self._input_first = all(position or index is not None for position, index in places or ())
        self._alone = slots.made in (None, ("",))
        places = tuple(range(len(slots.names))) if slots.made is None else _indices(slots.made)
        self._made = None if places is None else list(zip(slots.names, places, strict=False))
        self._most = max(places or (), default=0)

    def forget(self) -> None:
        """A new step begins."""
        self._last = {}
        self._owners = []

    def read(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> StateCall | None:
        """One call; None if nothing that it made can train."""
        made: list[Result] = []
        for name, state in self._results(outputs):
            node = state.grad_fn
            if node is not None or state.requires_grad:
                made.append((name, state, node, state.output_nr, state._version))
        if not made or not made[0][1].numel():
            return None
        x, states = self._taken(inputs, kwargs)
        last, self._last = self._last, {id(one[1]): one for one in made}
        given: list[Given] = []
        goes_on = False
        for name, state in states:
            before = last.get(id(state))
            goes_on = goes_on or before is not None
            given.append((name, state, state.grad_fn if before is None else before[2]))
        begins = None if goes_on and len(last) == len(made) else self.begins()
        return StateCall(self.name, self, x, given, made, begins)

    def begins(self) -> Beginning:
        """With the weights as they are now, be they swapped for the call alone."""
        self._owners = self._owners or list(_owners(self.name, self.module))
        weights = tuple((name, parameters[key]) for name, parameters, key in self._owners)
        return Beginning(weights, tuple(weight._version for _, weight in weights), self._clock())

    def _results(self, outputs: Any) -> Iterable[tuple[str, Tensor]]:
        if isinstance(outputs, Tensor):
            if self._alone:
                return ((self.slots.names[0], outputs),)
        elif self._made is not None and type(outputs) is tuple and len(cast("Any", outputs)) > self._most:
            found = [(name, outputs[i]) for name, i in self._made]
            for _, state in found:  # at every call: a generator would cost a microsecond
                if not isinstance(state, Tensor):
                    break
            else:
                return found
        return self.slots.states_made(outputs)

    def _taken(self, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, list[tuple[str, Tensor]]]:
        """The input, and the states."""
        if not kwargs and inputs and isinstance(inputs[0], Tensor):
            if self.slots.given is None:
                if all(isinstance(value, Tensor) for value in inputs):
                    return inputs[0], [("h", value) for value in inputs]
            elif self._given is not None and self._input_first:
                return inputs[0], self._at_positions(inputs)
        taken = arguments(inputs, kwargs, self.slots.parameters)
        return self.slots.input_of(taken), self.slots.states_given(taken)

    def _at_positions(self, inputs: tuple[Any, ...]) -> list[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = []
        for name, position, index in self._given or ():
            value: Any = inputs[position] if position < len(inputs) else None
            if index is not None:
                value = value[index] if type(value) in (tuple, list) and index < len(value) else None
            if isinstance(value, Tensor):
                found.append((name, value))
        return found


def _positions(paths: tuple[str, ...], parameters: tuple[str, ...]) -> list[tuple[int, int | None]] | None:
    """Paths among the arguments as positions, each with an index where a tuple lies there; None
    where one is any other.
    """
    found: list[tuple[int, int | None]] = []
    for path in paths:
        parts = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", path)
        if parts is None or parts[1] not in parameters:
            return None
        found.append((parameters.index(parts[1]), None if parts[2] is None else int(parts[2])))
    return found


def _indices(paths: tuple[str, ...]) -> tuple[int, ...] | None:
    """Paths in a tuple that is returned as indices; None where one is any other."""
    found = [re.fullmatch(r"\[(\d+)\]", path) for path in paths]
    indices = tuple(int(one[1]) for one in found if one is not None)
    return indices if len(indices) == len(paths) and max(indices, default=-1) >= 0 else None


def _owners(name: str, module: nn.Module) -> list[tuple[str, Mapping[str, Tensor], str]]:
    """Each parameter's name, and where it is to be had, each once."""
    seen: dict[int, tuple[str, Mapping[str, Tensor], str]] = {}
    for prefix, part in module.named_modules(prefix=name):
        own = cast("Mapping[str, Tensor]", cast("Any", part)._parameters)
        for key, parameter in own.items():
            if parameter is not None:  # pyright: ignore[reportUnnecessaryComparison]
                seen.setdefault(id(parameter), (f"{prefix}.{key}", own, key))
    return list(seen.values())
