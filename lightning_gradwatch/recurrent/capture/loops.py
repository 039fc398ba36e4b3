"""Which calls of a cell follow one another: sequences found by the
identity of the state that comes in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, MutableSequence
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.segments import segments
from lightning_gradwatch.recurrent.capture.severed import FEW, How
from lightning_gradwatch.recurrent.capture.slots import Slots, arguments, results
from lightning_gradwatch.recurrent.graph.ways_up import REACH
from lightning_gradwatch.recurrent.loop import Loop, LoopState, Made
from lightning_gradwatch.recurrent.scan import Scan

Origin = tuple[Loop, int, Made]
"""A sequence, a timestep of it, and one of the calls of that timestep."""

WITHOUT_GRADIENT = "None of the {count} states given to tap() needs a gradient: each was detached before, or nothing that made it trains."


class Loops:
    """Joins the calls of cells, and the taps, of one training step to sequences, each
    appended to ``calls`` when it begins.

    A cell may be called several times with one state: one of these calls is the timestep, from
    which the sequence goes on; the others stand beside it. Where one of them is gone on from as
    well, a sequence of its own branches off.

    Attributes:
        slots: module name → which of the tensors that it takes and returns are its
            states, where that was found out.
        undecided: modules of which that is still looked for.
        without_gradient: tap → how many of its states in this step need no gradient.
    """

    def __init__(
        self, calls: MutableSequence[RecurrentCall | Loop | Scan], clock: Callable[[], int] = lambda: 0
    ) -> None:
        self._clock = clock
        self.slots: dict[str, Slots] = {}
        self.undecided: set[str] = set()
        self._by_definition: dict[str, Slots] = {}
        self._calls = calls
        self._by_tensor: dict[int, Origin] = {}
        self._by_node: dict[int, Origin] = {}
        self._of_module: dict[str, list[Loop]] = {}
        self.without_gradient: Counter[str] = Counter()
        self._number: Counter[str] = Counter()

    def clear(self) -> None:
        """A new step begins."""
        self._by_tensor.clear()
        self._by_node.clear()
        self._of_module.clear()
        self.without_gradient.clear()
        self._number.clear()

    def taps_without_gradient(self) -> dict[str, How]:
        """Tap → why nothing flows through it: none of its states in this step needs a gradient."""
        return {
            name: How(WITHOUT_GRADIENT.format(count=count))
            for name, count in self.without_gradient.items()
            if count >= FEW and name not in self._of_module
        }

    def tap(self, name: str, state: Tensor) -> None:
        """The next state of a tap."""
        if not state.requires_grad or not state.numel():
            self.without_gradient[name] += bool(state.numel())
            return
        loops = self._of_module.get(name)
        loop = loops[-1] if loops else self._begin(name, "tap", ("h",), ())
        loop.add(Made(None, (LoopState.of(state),)))

    def split_taps(self) -> None:
        """Make each piece of a tap's states through which a gradient flows a sequence of its
        own. It walks through the graph.
        """
        for name, (loop, *_) in list(self._of_module.items()):
            pieces = segments(loop) if loop.kind == "tap" else [loop]
            if len(pieces) > 1 and loop in self._calls:
                at = self._calls.index(loop)
                self._calls[at : at + 1] = pieces
                self._of_module[name] = pieces

    def keep(
        self,
        name: str,
        module: nn.Module,
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: Any,
        doubt: str | None = None,
    ) -> None:
        """One call of a cell. ``doubt``: why the outputs may not be what it returned."""
        slots = self.slots.get(name) or self._slots_of(name, module)
        made = slots.states_made(outputs)
        if not made or (slots.given is None and name in self.undecided and len(results(outputs)) > 1):
            return
        taken = arguments(inputs, kwargs, slots.parameters)
        given = slots.states_given(taken)
        names, states = tuple(slot for slot, _ in made), [state for _, state in given]
        origin = self._source(name, states)
        call = Made(slots.input_of(taken), tuple(LoopState.of(state) for _, state in made), _named(slots, given, made))
        if origin is not None and origin[0].names == names:
            origin[0].doubt = origin[0].doubt or doubt
            self._continue(origin, call)
            return
        loop = self._begin(name, _kind(module), names, _weights(name, module))
        loop.doubt = doubt
        if isinstance(module, nn.LSTMCell):
            # Without a batch dimension PyTorch squeezes both results, and h no longer
            # hangs on this c in the graph.
            loop.c_is_total = made[-1][1].dim() == 2
        self._put(loop, call)

    def _slots_of(self, name: str, module: nn.Module) -> Slots:
        """Those that are not found out: they are the same at every call."""
        if name not in self._by_definition:
            self._by_definition[name] = Slots.of(module) or Slots.unknown(module)
        return self._by_definition[name]

    def _begin(self, name: str, kind: str, names: tuple[str, ...], weights: tuple[tuple[str, Tensor], ...]) -> Loop:
        loop = Loop(name, self._number[name], kind, names, weights=weights, step=self._clock())
        self._number[name] += 1
        self._of_module.setdefault(name, []).append(loop)
        self._calls.append(loop)
        return loop

    def _put(self, loop: Loop, call: Made) -> None:
        """The next timestep of a sequence."""
        if call.given:
            last = {id(state.tensor) for state in loop.steps[-1].states} if loop.steps else set[int]()
            if all(id(state) in last for _, state in call.given):
                call.given = ()
        loop.add(call)
        self._know(loop, len(loop.steps) - 1, call)

    def _know(self, loop: Loop, step: int, call: Made) -> None:
        for state in call.states:  # these are held, so that no later tensor or node gets their identity
            self._by_tensor[id(state.tensor)] = self._by_node[id(state.edge.node)] = loop, step, call

    def _continue(self, origin: Origin, call: Made) -> None:
        """A call that was given the state of an earlier one."""
        loop, step, before = origin
        leads = loop.steps[step] is before
        if step == len(loop.steps) - 1:
            if not leads:
                loop.go_on_from(before)
            self._put(loop, call)
        elif leads:
            loop.add_beside(call, step + 1)
            self._know(loop, step + 1, call)
            self._join_starts(loop, len(loop.besides[step + 1]))
        else:
            loop.besides[step].remove(before)
            branch = self._begin(loop.module, loop.kind, loop.names, loop.weights)
            branch.c_is_total = loop.c_is_total
            self._put(branch, before)
            self._put(branch, call)

    def _join_starts(self, loop: Loop, count: int) -> None:
        """The cell is called ``1 + count`` times in a timestep: so are those sequences of one
        timestep that began as this one did.
        """
        for other in list(self._of_module[loop.module]):
            if len(loop.besides.get(0, ())) >= count:
                return
            if other is not loop and len(other.steps) == 1 and other.begins_as(loop):
                self._absorb(loop, other)

    def _absorb(self, loop: Loop, other: Loop) -> None:
        """Take a sequence of one timestep for another call of the first timestep of ``loop``."""
        self._of_module[loop.module].remove(other)
        if other in self._calls:
            self._calls.remove(other)
        loop.add_beside(other.steps[0], 0)
        self._know(loop, 0, other.steps[0])

    def _source(self, name: str, states: Iterable[Tensor]) -> Origin | None:
        """The call whose state this one was given, itself or a few operations later: the
        latest where there are several.
        """
        origins: list[Origin] = []
        for state in states:
            origin = self._by_tensor.get(id(state))
            origins += [origin] if origin is not None and origin[0].module == name else self._through_graph(name, state)
        if not origins:
            return None
        first = max(origins, key=lambda origin: origin[1] - len(origin[0].steps))
        for origin in origins:
            if origin[2] is first[2]:
                continue
            if origin[0] is first[0] and origin[1] == first[1]:
                first[0].mixed = True
            elif len(origin[0].steps) == len(first[0].steps) == 1 and origin[0].begins_as(first[0]):
                self._absorb(first[0], origin[0])
                first[0].mixed = True
        return first

    def _through_graph(self, name: str, state: Tensor) -> list[Origin]:
        """The calls of a module that a state hangs on, through a few
        operations, the nearest first.
        """
        if name not in self._of_module or state.grad_fn is None:
            return []
        origins: list[Origin] = []
        frontier, seen = [state.grad_fn], {state.grad_fn}
        for _ in range(REACH):
            below = list[Any]()
            for node in frontier:
                origin = self._by_node.get(id(node))
                if origin is not None and origin[0].module == name:
                    origins.append(origin)
                    continue
                new = [child for child, _ in node.next_functions if child is not None and child not in seen]
                seen.update(new)
                below += new
            frontier = below
        return origins


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """All tensors in nested tuples and lists, in order."""
    held: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            held.append(value)
        elif isinstance(value, tuple | list):
            held += tensors(value)  # pyright: ignore[reportUnknownArgumentType]
    return held


def _named(
    slots: Slots, given: list[tuple[str, Tensor]], made: list[tuple[str, Tensor]]
) -> tuple[tuple[str, Tensor], ...]:
    """The states that a call was given. Where it is not known which they are, what else it was
    given (a mask, say) may well hold infinities: only one of the same shape is taken for it.
    """
    if slots.given is None:
        given = [one for one in given[1:] if one[1].shape == made[0][1].shape][:1]
    return tuple(given)


def _kind(module: nn.Module) -> str:
    for base, kind in ((nn.LSTMCell, "LSTM"), (nn.GRUCell, "GRU"), (nn.RNNCell, "RNN")):
        if isinstance(module, base):
            return kind
    return type(module).__name__


def _weights(name: str, module: nn.Module) -> tuple[tuple[str, Tensor], ...]:
    return tuple((f"{name}.{parameter_name}", parameter) for parameter_name, parameter in module.named_parameters())
