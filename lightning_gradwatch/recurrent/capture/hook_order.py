"""Forward hooks that are shown what a module's forward returned
before any other hook can change it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.capture.compiled import must_not_break
from lightning_gradwatch.recurrent.capture.everywhere import (
    SHOWS_KEYWORDS,
    after_every_module,
    leave_every_module,
)

Seen = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any, str | None], None]
"""Shown ``(module, inputs, kwargs, outputs, doubt)``; ``doubt`` says why the outputs may
not be what the forward returned.
"""

DOUBT = "another forward hook ran before GradWatch's and may have changed what the forward returned"


class FirstHooks:
    """PyTorch calls global forward hooks first, then a module's own in their order, each with what
    the one before made of the result.

    Before each training step :meth:`settle` goes to the front again: of a module's hooks, and of
    the global ones while there are any but those that only look (``only_looks``) and PyTorch shows
    them all that it shows a module's own. Only hooks that change how the gradient flows back
    (``holds_gradient``, of a :class:`ThroughTime`) stay before it.
    """

    def __init__(self) -> None:
        # By identity, which a lookup at every call of a cell can afford.
        self._placed: dict[int, tuple[nn.Module, RemovableHandle, Seen]] = {}
        self._before: list[tuple[nn.Module, RemovableHandle]] = []
        self._global: RemovableHandle | None = None

    def add(self, module: nn.Module, hook: Seen) -> None:
        """Have ``hook`` be shown each result of the module's forward."""
        handle = module.register_forward_hook(self._after, with_kwargs=True, prepend=True)
        self._placed[id(module)] = module, handle, hook
        self.settle()

    def add_before(self, module: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...]], None]) -> None:
        """Have ``hook`` be called right before the module's forward, after all other hooks."""
        self._before.append((module, module.register_forward_pre_hook(hook)))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in [*(handle for _, handle, _ in self._placed.values()), *(handle for _, handle in self._before)]:
            handle.remove()
        self._placed.clear()
        self._before.clear()
        self._leave_global()

    def settle(self) -> None:
        """Go to the front again, where hooks have come before."""
        for module, handle, _ in self._placed.values():
            _put_first(_hooks(module), handle)
        for module, handle in self._before:
            _put_last(cast("Any", module)._forward_pre_hooks, handle)
        everywhere = _global_hooks()
        ours = None if self._global is None else self._global.id
        needed = any(number != ours and not _only_looks(hook) for number, hook in everywhere.items())
        if not needed or not SHOWS_KEYWORDS:
            self._leave_global()
            return
        if self._global is None or self._global.id not in everywhere:
            self._global = after_every_module(self._after_any)
        _put_first(everywhere, self._global)

    def _leave_global(self) -> None:
        if self._global is not None:
            leave_every_module(self._global)
            self._global = None

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any = None) -> None:
        # Taken off by a hook before it, it is called once more, and without ``kwargs``.
        if must_not_break():
            return
        first = self._placed.get(id(module))
        if first is None or (self._global is not None and not _holds(module)):
            return  # the global hook has seen it
        _, handle, hook = first
        surely = _is_first(_hooks(module), handle) and all(map(_only_looks, _global_hooks().values()))
        hook(module, inputs, kwargs, outputs, None if surely else DOUBT)

    def _after_any(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if must_not_break():
            return
        first = self._placed.get(id(module))
        if first is None or self._global is None or _holds(module):
            return
        surely = _is_first(_global_hooks(), self._global)
        first[2](module, inputs, kwargs, outputs, None if surely else DOUBT)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert: a copied or pickled model carries the hooks along,
        and they must do nothing there.
        """
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()


def _global_hooks() -> OrderedDict[int, Any]:
    return cast("Any", torch_module)._global_forward_hooks


def _hooks(module: nn.Module) -> OrderedDict[int, Any]:
    return cast("Any", module)._forward_hooks


def _holds_gradient(hook: Any) -> bool:
    return getattr(hook, "holds_gradient", False)


def _only_looks(hook: Any) -> bool:
    return getattr(hook, "only_looks", False)


def _holds(module: nn.Module) -> bool:
    return any(map(_holds_gradient, _hooks(module).values()))


def _front(hooks: OrderedDict[int, Any], handle: RemovableHandle) -> list[int]:
    """Those that hold the gradient, then the handle's own."""
    return [*(number for number, hook in hooks.items() if _holds_gradient(hook)), handle.id]


def _is_first(hooks: OrderedDict[int, Any], handle: RemovableHandle) -> bool:
    if len(hooks) == 1:
        return handle.id in hooks
    front = _front(hooks, handle)
    return list(islice(hooks, len(front))) == front


def _put_first(hooks: OrderedDict[int, Any], handle: RemovableHandle) -> None:
    if handle.id in hooks and not _is_first(hooks, handle):
        for number in reversed(_front(hooks, handle)):
            hooks.move_to_end(number, last=False)


def _put_last(hooks: OrderedDict[int, Any], handle: RemovableHandle) -> None:
    if handle.id in hooks and next(reversed(hooks)) != handle.id:
        hooks.move_to_end(handle.id)
