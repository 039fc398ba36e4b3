"""Cells of one's own whose state is detached or made anew at every step: no output comes back as
an input.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.loops import tensors
from lightning_gradwatch.recurrent.capture.modules import beside
from lightning_gradwatch.recurrent.capture.search_hooks import SearchHooks
from lightning_gradwatch.recurrent.capture.severed import FEW, How, comes_from, differs_by_row
from lightning_gradwatch.recurrent.capture.slots import arguments, is_own, parameters
from lightning_gradwatch.recurrent.capture.taps import listen
from lightning_gradwatch.recurrent.graph.slices import Origin, origins

STATES = frozenset(
    f"{before}{name}{after}"
    for name in ("h", "hx", "hidden", "hidden_state", "state", "carry")
    for before, after in (("", ""), ("", "0"), ("", "_0"), ("", "_prev"), ("prev_", ""), ("last_", ""))
)
"""What the parameter of a forward that takes a state is called."""

ANEW = "Each of its {count} calls takes a slice of one tensor and begins anew, with {what} for {name}."
NEVER_GIVEN = (
    "Each of its {count} calls takes a slice of one tensor, and none is given {name}: if that is a state and the calls are "
    "timesteps, nothing is carried through time."
)


@dataclass(slots=True)
class _Calls:
    """What is known of one module's calls: of the last one its states without a graph and its
    results of their shapes, detached.
    """

    count: int = 0
    detached: int = 0
    given: list[Tensor] = field(default_factory=list[Tensor])
    made: list[Tensor] = field(default_factory=list[Tensor])
    values: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    """Of parameters that look like a state, what they had in every call so far; nothing is empty.
    """
    slice_of: set[Origin] | None = None
    """What the inputs of all calls come from."""
    inputs: set[int] = field(default_factory=set[int])
    """Where they begin in memory."""
    taps: set[str] = field(default_factory=set[str])
    """Under which its results were tapped."""


class SeveredCells:
    """Watches every module without a recurrent one inside for one training step.

    Attributes:
        hooks: those on the modules.
    """

    def __init__(self, model: nn.Module, known: Iterable[nn.Module], is_over: FitIsOver | None = None) -> None:
        self._names = beside(model, tuple(known), holding=False)
        self._calls: dict[str, _Calls] = {}
        self.hooks = SearchHooks(self._names, self._after, is_over, around=True)
        self._end = listen(self._tapped)

    def severed(self, told: Collection[str]) -> dict[str, How]:
        """Module → how its state is severed.

        Args:
            told: taps of which it is told already.
        """
        ways = {name: _how(calls) for name, calls in self._calls.items() if not calls.taps.intersection(told)}
        return {name: how for name, how in ways.items() if how is not None}

    def close(self) -> None:
        """Take the hooks off."""
        self.hooks.close()
        self._end()
        self._calls.clear()

    def _tapped(self, name: str, state: Tensor) -> None:
        place = state.data_ptr()
        for calls in self._calls.values() if self.hooks.is_open else ():
            if any(made.data_ptr() == place for made in calls.made):
                calls.taps.add(name)

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        calls = self._calls.setdefault(self._names[module], _Calls())
        calls.count += 1
        taken = arguments(inputs, kwargs, parameters(module))
        if is_own(module):
            _look_for_anew(calls, parameters(module), taken, tensors((outputs,)))
        _look_for_detached(calls, [*taken.values()], tensors((outputs,)))

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert, as a copy of a capture is."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(nn.Module(), ())


def _how(calls: _Calls) -> How | None:
    if calls.count < FEW:
        return None
    if calls.detached == calls.count - 1:
        return How(
            f"In each of its {calls.count} calls the state that comes in is that of the call before, but detached."
        )
    if not calls.values or not calls.slice_of or len(calls.inputs) < calls.count:
        return None
    name = min(calls.values)
    values = calls.values[name]
    if not values:
        return How(NEVER_GIVEN.format(count=calls.count, name=name), is_note=True)
    what = "the same values" if any(bool(value.any()) for value in values) else "zeros"
    return How(ANEW.format(count=calls.count, what=what, name=name))


def _look_for_detached(calls: _Calls, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    given = [tensor.detach() for tensor in inputs if not tensor.requires_grad and tensor.is_floating_point()]
    if any(_is_new(state, calls.given) and comes_from(state, last) for state in given for last in calls.made):
        calls.detached += 1
    shapes = {tensor.shape for tensor in given}
    calls.given = given
    calls.made = [tensor.detach() for tensor in outputs if tensor.requires_grad and tensor.shape in shapes]


def _is_new(state: Tensor, before: list[Tensor]) -> bool:
    """Whether it was not given to the call before as well: a module that changes nothing yet gives
    back what it was given.
    """
    return not any(state.shape == other.shape and (state == other).all() for other in before)


def _look_for_anew(calls: _Calls, names: tuple[str, ...], taken: Mapping[str, Tensor], outputs: list[Tensor]) -> None:
    """Whether what looks like a state has the same value in all calls, one for all sequences, while
    the input goes through the slices of one tensor.
    """
    now: dict[str, list[Tensor]] = {name: [] for name in names[1:] if name in STATES}
    inputs: list[Tensor] = []
    for path, tensor in taken.items():
        now.get(re.split(r"[.\[]", path)[0], inputs).append(tensor)
    before = now if calls.count == 1 else calls.values
    if calls.count == 2:  # the first may have begun otherwise
        before = {name: now[name] for name in calls.values if name in now}
    calls.values = {
        name: [value.detach() for value in values]
        for name, values in now.items()
        if name in before and _are_alike(values, before[name], outputs)
    }
    x = next((tensor for tensor in inputs if tensor.is_floating_point()), None)
    if calls.values and x is not None and x.dim() > 1 and len(x) > 1:
        calls.inputs.add(x.data_ptr())
        sources = set(origins(x))
        calls.slice_of = sources if calls.slice_of is None else calls.slice_of & sources


def _are_alike(values: list[Tensor], before: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether a state is that of the call before, of a shape that comes out too, and one for all
    sequences.
    """
    shapes = {made.shape for made in outputs if made.requires_grad}
    return len(values) == len(before) and all(
        value.dim() > 1
        and value.shape in shapes
        and value.shape == other.shape
        and bool((value == other).all())
        and not differs_by_row(value)
        for value, other in zip(values, before, strict=True)
    )
