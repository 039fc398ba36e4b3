"""Backward passes, whoever begins them.

``loss.backward()``, Fabric's ``fabric.backward(loss)`` and every package's own way end in
``torch.autograd.backward``. While somebody listens, a function stands in its place that tells of
the pass and hands everything on as it is; so does one for ``GradScaler.scale``, which says that
a loss is scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.capture.compiled import is_compiling


class Listener(Protocol):
    """Is told of each backward pass of the process. What it does must not raise."""

    def before_backward(self, loss: Tensor | None, scaler: Any | None) -> None:
        """A pass begins.

        Args:
            loss: its root; None where it has several.
            scaler: the gradient scaler that scaled it; None without one.
        """
        ...

    def after_backward(self, *, failed: bool) -> None:
        """It has ended; ``failed``: with an error, which the caller gets."""
        ...


class _Process:
    """What is common to all listeners. ``inside``: passes that are under way, since one may
    begin others, as reentrant checkpoints do; those are parts of it.
    """

    listeners: tuple[Listener, ...] = ()
    scaler: Any | None = None
    inside = 0


def listen(listener: Listener) -> Callable[[], None]:
    """Tell ``listener`` of backward passes; call what is returned to end it."""
    if not _Process.listeners:
        _BACKWARD.put()
        _SCALE.put()
    _Process.listeners = (*_Process.listeners, listener)

    def end() -> None:
        _Process.listeners = tuple(other for other in _Process.listeners if other is not listener)
        if not _Process.listeners:
            _BACKWARD.take_off()
            _SCALE.take_off()
            _Process.scaler = None

    return end


def is_under_way() -> bool:
    """Whether a backward pass is."""
    return _Process.inside > 0


class _Stand:
    """A function that stands in for another where that is looked up.

    Args:
        place: the module or class.
        name: how it is called there.
        make: the stand-in, from the original.
    """

    def __init__(self, place: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._place, self._name, self._make = place, name, make
        self._mine: Callable[..., Any] | None = None
        self._original: Callable[..., Any] | None = None

    def put(self) -> None:
        """Put it there."""
        original = self._original = getattr(self._place, self._name)
        self._mine = wraps(original)(self._make(original))
        setattr(self._place, self._name, self._mine)

    def take_off(self) -> None:
        """Put the original back. Where somebody has put his own in front of it, ours stays
        behind that, and only hands on.
        """
        if getattr(self._place, self._name) is self._mine:
            setattr(self._place, self._name, self._original)
        self._mine = self._original = None


def _backward(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        listeners = _Process.listeners
        if not listeners or _Process.inside or is_compiling():
            return original(tensors, *args, **kwargs)
        scaler, _Process.scaler = _Process.scaler, None
        loss = _only(tensors)
        for listener in listeners:
            listener.before_backward(loss, scaler)
        _Process.inside += 1
        failed = True
        try:
            result = original(tensors, *args, **kwargs)
            failed = False
        finally:
            _Process.inside -= 1
            for listener in listeners:
                listener.after_backward(failed=failed)
        return result

    return backward


def _scale(original: Callable[..., Any]) -> Callable[..., Any]:
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if _Process.listeners and self.is_enabled():
            _Process.scaler = self
        return scaled

    return scale


def _only(tensors: Any) -> Tensor | None:
    """The root of a pass that has one."""
    if isinstance(tensors, Tensor):
        return tensors
    roots = list(tensors)
    return roots[0] if len(roots) == 1 and isinstance(roots[0], Tensor) else None


_BACKWARD = _Stand(torch.autograd, "backward", _backward)
# PyTorch before 2.3 has it under CUDA alone.
_SCALE = _Stand(getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler, "scale", _scale)
