"""Calls of a module's ``forward`` that go around the module itself, so that no hook of it fires."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from lightning_gradwatch.recurrent.capture.compiled import is_compiling

Listener = Callable[[tuple[Any, ...], dict[str, Any], Any], None]

_CALLER = nn.Module.__call__.__code__.co_filename


class Direct:
    """Stands in for the forward of one module, and passes everything on as it is. What is called by
    the module's own ``__call__`` its hooks see; of any other call the listeners are told.

    A copy of the module takes a stand-in along that nobody listens to.
    """

    def __init__(self, module: nn.Module) -> None:
        self.forward: Callable[..., Any] = module.forward
        self.replaced: Callable[..., Any] | None = vars(module).get("forward")
        self.listeners: list[Listener] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or not self.listeners:
            return self.forward(*args, **kwargs)
        goes_around = sys._getframe(1).f_code.co_filename != _CALLER  # pyright: ignore[reportPrivateUsage]
        outputs = self.forward(*args, **kwargs)
        if goes_around:
            for listener in tuple(self.listeners):
                listener(args, kwargs, outputs)
        return outputs

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
        return {"forward": self.forward, "replaced": self.replaced, "listeners": []}


def own_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The forward that was put onto this one module, apart from its class's; None if none was."""
    forward = vars(module).get("forward")
    return forward.replaced if isinstance(forward, Direct) else forward


def hear_direct_calls(module: nn.Module, hook: Callable[..., None]) -> Callable[[], None]:
    """Have a forward hook (with keywords) told of every call of a module's ``forward`` that goes
    around it as well; call what is returned to end it.
    """
    listener: Listener = partial(hook, module)
    direct = vars(module).get("forward")
    if not isinstance(direct, Direct):
        direct = vars(module)["forward"] = Direct(module)
    direct.listeners.append(listener)

    def end() -> None:
        if listener in direct.listeners:
            direct.listeners.remove(listener)
        if direct.listeners or vars(module).get("forward") is not direct:
            return  # somebody else listens, or has put his own in front of it
        del vars(module)["forward"]
        if direct.replaced is not None:
            vars(module)["forward"] = direct.replaced

    return end
