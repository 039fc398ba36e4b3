"""What was heard in a step of which nobody has asked for the sequences yet."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import NamedTuple

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.cell_reader import Result, StateCall
from lightning_gradwatch.recurrent.capture.ears import Ear, Ears
from lightning_gradwatch.recurrent.capture.loops import Loops
from lightning_gradwatch.recurrent.gradient_slot import GradientSlot
from lightning_gradwatch.recurrent.loop import Loop, LoopState
from lightning_gradwatch.recurrent.scan import Scan

HOOKED_LATE = (
    "a hook was put onto a state after the forward pass, and may have changed its gradient after it was measured"
)


class Heard(NamedTuple):
    """That a module was called, ``step`` optimizer steps after training began."""

    module: str
    step: int


class Unread:
    """Calls in order. Those of cells, and taps, wait to be joined to sequences.

    Args:
        ears: listen to their states.

    Attributes:
        calls: in order.
    """

    def __init__(self, ears: Ears) -> None:
        self.calls: list[StateCall | RecurrentCall | Scan] = []
        self._ears = ears
        self._states: list[StateCall] = []
        self._whole: list[RecurrentCall | Scan] = []
        self._listening: list[list[Ear | None]] = []  # of each call of a cell, to each state
        self._hooks: dict[int, int] = {}  # by a state's identity, how many the model had put onto it
        self._steps: dict[str, int] = {}

    def add(self, call: StateCall) -> None:
        """A call of a cell, or a tap."""
        self.calls.append(call)
        self._states.append(call)
        if call.begins is not None:
            self._steps[call.name] = call.begins.step

    def add_whole(self, call: RecurrentCall | Scan) -> None:
        """What is a sequence by itself."""
        self.calls.append(call)
        self._whole.append(call)

    def listen(self) -> None:
        """The forward pass is over: have the gradients kept that reach the cells' states."""
        for call in self._states[len(self._listening) :]:
            heard: list[Ear | None] = []
            for _, state, node, number, _ in call.made:
                heard.append(None if node is None else self._ears.listen(node, number))
                if state._backward_hooks:
                    self._hooks[id(state)] = len(state._backward_hooks)
            self._listening.append(heard)

    def is_listening(self) -> bool:
        """Whether the forward pass is over, and nothing was heard since."""
        return len(self._listening) == len(self._states)

    def heard(self) -> list[Heard]:
        """Which modules were called."""
        named = [Heard(call.module, call.step) for call in self._whole]
        return [*named, *(Heard(name, step) for name, step in self._steps.items())]

    def arrived(self) -> list[Heard]:
        """Those of them that a gradient reached."""
        named = [Heard(call.module, call.step) for call in self._whole if call.has_gradient()]
        reached = set[str]()
        for call, ears in zip(self._states, self._listening, strict=False):
            if call.name not in reached and any(_arrived(ear) for ear in ears):
                reached.add(call.name)
        return [*named, *(Heard(name, self._steps[name]) for name in reached)]

    def read_into(self, calls: MutableSequence[RecurrentCall | Loop | Scan], loops: Loops, *, final: bool) -> None:
        """Join the calls of cells and the taps to sequences, and let go of them.

        Args:
            calls: takes what is no cell's.
            loops: joins, and adds what begins to ``calls``.
            final: no further gradient is to come.
        """
        listening = iter(self._listening)
        for call in self.calls:
            if isinstance(call, StateCall):
                ears = next(listening, None)
                none = [None] * len(call.made)
                states = [_state(made, ear, final) for made, ear in zip(call.made, ears or none, strict=True)]
                loops.join(call, states, HOOKED_LATE if ears and self._were_hooked(call) else None)
            else:
                calls.append(call)
        if final:
            self._give_back()
        self._drop()

    def forget_gradients(self) -> None:
        """Forget what has arrived so far at the calls that are no cell's."""
        for call in self._whole:
            call.release()

    def clear(self) -> None:
        """Let go of all calls, none of which was read, and of their gradients."""
        self.forget_gradients()
        self._give_back()
        self._drop()

    def _were_hooked(self, call: StateCall) -> bool:
        return any(len(state._backward_hooks or ()) != self._hooks.get(id(state), 0) for _, state, *_ in call.made)

    def _give_back(self) -> None:
        self._ears.give_back([ear for ears in self._listening for ear in ears if ear is not None])

    def _drop(self) -> None:
        for kept in (self.calls, self._states, self._whole, self._listening, self._hooks, self._steps):
            kept.clear()


def _arrived(ear: Ear | None) -> bool:
    return ear is not None and any(gradient is not None for gradient in ear.gradients)


def _state(made: Result, ear: Ear | None, final: bool) -> LoopState:
    _, tensor, node, number, version = made
    if ear is None:
        return LoopState.made(tensor, node, number, version)
    return LoopState.made(tensor, node, number, version, GradientSlot(list(ear.gradients) if final else ear.gradients))
