"""Which calls of a cell follow one another: sequences found by the identity of the state that comes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, MutableSequence
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.loop import Loop, LoopState
from lightning_gradwatch.recurrent.segments import segments
from lightning_gradwatch.recurrent.severed import FEW

REACH = 8
"""How many operations may lie between a state that comes out and the same state when it goes in again (a mask, a norm)."""


class Loops:
    """Joins the calls of cells, and the taps, of one training step to sequences, each appended to ``calls`` when it begins.

    Attributes:
        positions: module name → which of the tensors that it returns is its state, where that is not the first.
        without_gradient: tap → how many of its states in this step need no gradient.
    """

    def __init__(self, calls: MutableSequence[RecurrentCall | Loop]) -> None:
        self.positions: dict[str, int] = {}
        self._calls = calls
        self._last: dict[int, Loop] = {}
        self._of_module: dict[str, list[Loop]] = {}
        self.without_gradient: Counter[str] = Counter()
        self._number: Counter[str] = Counter()

    def clear(self) -> None:
        """A new step begins."""
        self._last.clear()
        self._of_module.clear()
        self.without_gradient.clear()
        self._number.clear()

    def taps_without_gradient(self) -> dict[str, str]:
        """Tap → why nothing flows through it: none of its states in this step needs a gradient."""
        return {
            name: f"None of the {count} states given to tap() needs a gradient: each was detached before, or nothing that made it trains."
            for name, count in self.without_gradient.items()
            if count >= FEW and name not in self._of_module
        }

    def tap(self, name: str, state: Tensor) -> None:
        """The next state of a tap."""
        if not state.requires_grad or not state.numel():
            self.without_gradient[name] += bool(state.numel())
            return
        loops = self._of_module.get(name)
        loop = loops[-1] if loops else self._begin(name, "tap", ())
        loop.inputs.append(None)
        loop.h.append(LoopState.of(state))

    def split_taps(self) -> None:
        """Make each piece of a tap's states through which a gradient flows a sequence of its own. It walks through the graph."""
        for name, (loop, *_) in list(self._of_module.items()):
            pieces = segments(loop) if loop.kind == "tap" else [loop]
            if len(pieces) > 1 and loop in self._calls:
                place = self._calls.index(loop)
                self._calls[place : place + 1] = pieces
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
        given = [*tensors(inputs), *tensors(kwargs.values())]
        made = tensors((outputs,))[self.positions.get(name, 0) :]
        if not made or not made[0].requires_grad or not made[0].numel():
            return
        x, states = given[0] if given else None, given[1:]
        loop = self._continued(name, states if isinstance(module, nn.RNNCellBase) else given)
        if loop is None:
            loop = self._begin(name, _kind(module), _weights(name, module))
        given = _named(module, states, made[0])
        last = {id(one[-1].tensor) for one in (loop.h, loop.c) if one}
        if any(id(state) not in last for _, state in given):
            loop.given[len(loop.h)] = given
        loop.inputs.append(x)
        loop.h.append(LoopState.of(made[0]))
        loop.doubt = loop.doubt or doubt
        if isinstance(module, nn.LSTMCell) and len(made) > 1:
            loop.c.append(LoopState.of(made[1]))
            # Without a batch dimension PyTorch squeezes both results, and h no longer hangs on this c in the graph.
            loop.c_is_total = made[1].dim() == 2
        for state in (loop.h[-1], *loop.c[-1:]):  # these are held, so that no later tensor gets their identity
            self._last[id(state.tensor)] = loop

    def _begin(self, name: str, kind: str, weights: tuple[tuple[str, Tensor], ...]) -> Loop:
        loop = Loop(name, self._number[name], kind, weights=weights)
        self._number[name] += 1
        self._of_module.setdefault(name, []).append(loop)
        self._calls.append(loop)
        return loop

    def _continued(self, name: str, states: Iterable[Tensor]) -> Loop | None:
        """The sequence whose last state this call was given, itself or a few operations later."""
        states = list(states)
        for state in states:
            loop = self._last.get(id(state))
            if loop is not None and loop.module == name:
                return loop
        nodes = {id(loop.h[-1].edge.node): loop for loop in self._of_module.get(name, [])}
        frontier = [state.grad_fn for state in states if state.grad_fn is not None]
        for _ in range(REACH):
            for node in frontier:
                if id(node) in nodes:
                    return nodes[id(node)]
            frontier = [below for node in frontier for below, _ in node.next_functions if below is not None]
        return None


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """All tensors in nested tuples and lists, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors(value)  # pyright: ignore[reportUnknownArgumentType]
    return found


def _named(module: nn.Module, states: list[Tensor], made: Tensor) -> tuple[tuple[str, Tensor], ...]:
    """h, then an LSTM's c. What else a cell of one's own is given (a mask, say) may well hold infinities: it is no state."""
    if not isinstance(module, nn.RNNCellBase):
        states = [state for state in states if state.shape == made.shape][:1]
    return tuple(zip(("h", "c"), states, strict=False))


def _kind(module: nn.Module) -> str:
    for base, kind in ((nn.LSTMCell, "LSTM"), (nn.GRUCell, "GRU"), (nn.RNNCell, "RNN")):
        if isinstance(module, base):
            return kind
    return type(module).__name__


def _weights(name: str, module: nn.Module) -> tuple[tuple[str, Tensor], ...]:
    return tuple((f"{name}.{own}", parameter) for own, parameter in module.named_parameters())
