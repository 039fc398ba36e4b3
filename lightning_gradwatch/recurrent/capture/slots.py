"""Which of the tensors that a cell takes and returns are its states."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from torch import Tensor, nn

from lightning_gradwatch.recurrent.weakly_held import WeaklyHeld


@dataclass(frozen=True, slots=True)
class Slots(WeaklyHeld):
    """Where a cell's states go in and come out.

    Args:
        names: of the states, the leading one first.
        given: path among the arguments at which each goes in, as :func:`arguments` names
            it; None where that is not known.
        made: path in what is returned at which each comes out; None for the first tensor there is.
        parameters: names of the forward's positional parameters.
    """

    names: tuple[str, ...]
    given: tuple[str, ...] | None = None
    made: tuple[str, ...] | None = None
    parameters: tuple[str, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Slots | None:
        """Of a cell of PyTorch's own, by its definition; None of any
        other, whose slots are to be found.
        """
        if type(module).forward is nn.LSTMCell.forward:
            return cls(("h", "c"), ("hx[0]", "hx[1]"), ("[0]", "[1]"), ("input", "hx"))
        if type(module).forward in (nn.RNNCell.forward, nn.GRUCell.forward):
            return cls(("h",), ("hx",), ("",), ("input", "hx"))
        return None

    @classmethod
    def unknown(cls, module: nn.Module) -> Slots:
        """Of a cell of which nothing is known: any tensor that it takes may be its state, the first
        that it returns is (of what derives from an LSTM's cell, the first two).
        """
        return cls(("h", "c") if isinstance(module, nn.LSTMCell) else ("h",), parameters=parameters(module))

    @classmethod
    def from_returns(cls, module: nn.Module, returns: Mapping[tuple[str, str], int]) -> Slots:
        """From how often each output came back at each input: ``(path out, path in)`` → times. A
        single state is called h, unless it goes in behind another tensor, as an LSTM's c does where
        h comes back from elsewhere. Such a one and several have the names of the parameters at
        which they go in, without ``prev``, and one that is called h there leads.
        """
        made = list(dict.fromkeys(out for out, _ in returns))
        given = [max((pair for pair in returns if pair[0] == out), key=lambda pair: returns[pair])[1] for out in made]
        names = _names(given)
        if isinstance(module, nn.LSTMCell):  # what derives from it takes (h, c), in whichever order it returns them
            names = [{"hx[0]": "h", "hx[1]": "c"}.get(path, path) for path in given]
        order = sorted(range(len(names)), key=lambda i: names[i] != "h")
        names, given, made = (tuple(one[i] for i in order) for one in (names, given, made))
        return cls(names, given, made, parameters(module))

    def states_given(self, taken: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        """The states among the arguments, by name; all arguments
        where it is not known which are.
        """
        if self.given is None:
            return [("h", tensor) for tensor in taken.values()]
        return [(name, taken[path]) for name, path in _pairs(self.names, self.given) if path in taken]

    def states_made(self, outputs: Any) -> list[tuple[str, Tensor]]:
        """The states among what was returned, by name, as far as the loss may reach them."""
        returned = results(outputs)
        paths = self.made or tuple(returned)[: len(self.names)]
        pairs = [(name, returned[path]) for name, path in _pairs(self.names, paths) if path in returned]
        return [(name, state) for name, state in pairs if state.requires_grad and state.numel()]

    def input_of(self, taken: Mapping[str, Tensor]) -> Tensor | None:
        """The first argument that is no state."""
        return next((tensor for path, tensor in taken.items() if path not in (self.given or ())), None)


_FIRST = re.compile(r"[\w ]+(\[0\])*")
"""The path of an argument, or of the first that it holds."""


def _pairs(names: Sequence[str], paths: Sequence[str]) -> list[tuple[str, str]]:
    """Those that have both. (A compiled cell is traced through here, and torch 2.6
    cannot trace ``zip(strict=...)``.)
    """
    return [(names[i], paths[i]) for i in range(min(len(names), len(paths)))]


def _names(paths: list[str]) -> list[str]:
    if len(paths) == 1 and _FIRST.fullmatch(paths[0]):
        return ["h"]
    short = [path.rpartition(".")[2] for path in paths]
    plain = [path.removeprefix("prev_").removesuffix("_prev") for path in short]
    named = next((names for names in (plain, short, paths) if len(set(names)) == len(paths)), None)
    return named or [f"{path} {number}" for number, path in enumerate(paths)]


def arguments(inputs: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Path → tensor of a call's arguments: ``h``, ``state[1]``, ``state.c``."""
    tensors: dict[str, Tensor] = {}
    for i, value in enumerate(inputs):
        _gather(names[i] if i < len(names) else f"argument {i}", value, tensors)
    for name, value in kwargs.items():
        _gather(name, value, tensors)
    return tensors


def results(outputs: Any) -> dict[str, Tensor]:
    """Path → tensor of what a call returned: ``[1][0]``, ``.c``; the empty
    path where it is a tensor itself.
    """
    tensors: dict[str, Tensor] = {}
    _gather("", outputs, tensors)
    return tensors


def parameters(module: nn.Module) -> tuple[str, ...]:
    """The names of the positional parameters of a module's forward."""
    return _parameters(type(module).forward)


def is_own(module: nn.Module) -> bool:
    """Whether its class is none of PyTorch's; a parametrized module is of the class that it was."""
    kinds = (kind.__module__ for kind in type(module).__mro__)
    return not next(kind for kind in kinds if kind != "torch.nn.utils.parametrize").startswith("torch.nn")


@lru_cache(maxsize=256)
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    try:
        by_name = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in by_name if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _gather(path: str, value: Any, tensors: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        tensors[path] = value
        return
    for key, part in _parts(value):
        _gather(path + key, part, tensors)


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    """What a container holds, each with what it adds to the path."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # pyright: ignore[reportUnknownArgumentType]
        return [(f".{name}", getattr(value, name)) for name in cast("Any", value)._fields]  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, tuple | list):
        return [(f"[{i}]", part) for i, part in enumerate(cast("list[Any]", value))]
    if isinstance(value, dict):
        return [(f".{key}", part) for key, part in cast("dict[Any, Any]", value).items()]
    if hasattr(type(value), "__dataclass_fields__"):
        return [(f".{name}", getattr(value, name, None)) for name in type(value).__dataclass_fields__]
    return ()
