"""A forward hook on every module that there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.capture.compiled import is_compiling

SHOWS_KEYWORDS = "with_kwargs" in inspect.signature(torch_module.register_module_forward_hook).parameters
"""Whether PyTorch shows such a hook what was passed by keyword; before 2.6 it does not."""


def after_every_module(hook: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]) -> RemovableHandle:
    """Have ``hook`` be shown ``(module, inputs, kwargs, outputs)`` of every call from now on, until
    :func:`leave_every_module`. Without :data:`SHOWS_KEYWORDS` its ``kwargs`` are empty.
    """
    if SHOWS_KEYWORDS:
        return torch_module.register_module_forward_hook(hook, with_kwargs=True)

    def by_position(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if not is_compiling():  # old compilers cannot trace the call, and there it would do nothing
            hook(module, inputs, {}, outputs)

    cast("Any", by_position).only_looks = getattr(hook, "only_looks", False)
    return torch_module.register_module_forward_hook(by_position)


def leave_every_module(handle: RemovableHandle) -> None:
    """Take the hook off."""
    handle.remove()
    if SHOWS_KEYWORDS:  # PyTorch forgets to take it out of here
        cast("Any", torch_module)._global_forward_hooks_with_kwargs.pop(handle.id, None)
