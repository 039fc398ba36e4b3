"""Calls of a module's ``forward`` that go around the module itself, so that no hook of it fires."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from lightning_gradwatch.recurrent.capture.compiled import is_compiling, must_not_break

Listener = Callable[[tuple[Any, ...], dict[str, Any], Any], None]

_CALLER = nn.Module.__call__.__code__.co_filename


class Direct:
    """Stands in for the forward of one module, and passes everything on as it is. What is called by
    the module's own ``__call__`` its hooks see; of any other call the listeners are told.
    ``all_calls`` are told of each, and of what the forward itself returned.

    A copy of the module takes a stand-in along that nobody listens to.
    """

    def __init__(self, module: nn.Module) -> None:
        self.forward: Callable[..., Any] = module.forward
        self.replaced: Callable[..., Any] | None = vars(module).get("forward")
        self.listeners: list[Listener] = []
        self.all_calls: tuple[Listener, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return self._compiled(args, kwargs)
        listeners = self.listeners
        goes_around = bool(listeners) and sys._getframe(1).f_code.co_filename != _CALLER  # pyright: ignore[reportPrivateUsage]
        outputs = self.forward(*args, **kwargs)
        for listener in self.all_calls:
            listener(args, kwargs, outputs)
        if goes_around:
            for listener in tuple(listeners):
                listener(args, kwargs, outputs)
        return outputs

    def _compiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outputs = self.forward(*args, **kwargs)
        if self.all_calls and not must_not_break():
            _tell(self, args, kwargs, outputs)
        return outputs

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self.listeners or self.all_calls)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """Where ``inspect.signature`` looks for the parameters."""
        return self.forward

    def __getattr__(self, name: str) -> Any:
        """What else is asked of a forward: ``__name__``, ``__func__``, ``__self__``."""
        if name == "forward":  # it is being unpickled
            raise AttributeError(name)
        return getattr(self.forward, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"forward": self.forward, "replaced": self.replaced, "listeners": [], "all_calls": ()}


@cast("Any", torch)._disable_dynamo
def _tell(direct: Direct, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
    """Out of compiled code, between two graphs."""
    for listener in direct.all_calls:
        listener(args, kwargs, outputs)


def own_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The forward that was put onto this one module, apart from its class's; None if none was."""
    forward = vars(module).get("forward")
    return forward.replaced if isinstance(forward, Direct) else forward


def hear_direct_calls(module: nn.Module, hook: Callable[..., None]) -> Callable[[], None]:
    """Have a forward hook (with keywords) told of every call of a module's ``forward`` that goes
    around it as well; call what is returned to end it.
    """
    listener: Listener = partial(hook, module)
    direct = _stand_in(module)
    direct.listeners.append(listener)

    def end() -> None:
        if listener in direct.listeners:
            direct.listeners.remove(listener)
        _leave(module, direct)

    return end


class Hearing:
    """Tells a listener of every call of a module's forward, whichever way it is called, and of what
    the forward itself returned, whatever hooks make of it.
    """

    def __init__(self, module: nn.Module, listener: Listener) -> None:
        self._module, self._listener = module, listener
        self._begin()

    def settle(self) -> None:
        """Go in front again, where somebody has given the module another forward."""
        if vars(self._module).get("forward") is not self._direct:
            self.end()
            self._begin()

    def end(self) -> None:
        """Tell of nothing more."""
        self._direct.all_calls = tuple(one for one in self._direct.all_calls if one is not self._listener)
        _leave(self._module, self._direct)

    def _begin(self) -> None:
        self._direct = _stand_in(self._module)
        self._direct.all_calls += (self._listener,)


def _stand_in(module: nn.Module) -> Direct:
    direct = vars(module).get("forward")
    if not isinstance(direct, Direct):
        direct = vars(module)["forward"] = Direct(module)
    return direct


def _leave(module: nn.Module, direct: Direct) -> None:
    if direct.is_heard or vars(module).get("forward") is not direct:
        return  # somebody else listens, or has put his own in front of it
    del vars(module)["forward"]
    if direct.replaced is not None:
        vars(module)["forward"] = direct.replaced
