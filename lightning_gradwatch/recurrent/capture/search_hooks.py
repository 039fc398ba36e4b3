"""The hooks of those who look at every module for one step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.capture.compiled import is_compiling
from lightning_gradwatch.recurrent.capture.direct_calls import hear_direct_calls
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver

Heard = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
"""Told of a module, what it was given and by which keywords, and what it returned."""


class SearchHooks:
    """Tells of each forward that can train, and nothing of what is compiled. A copy is inert.

    Args:
        modules: to put hooks on.
        heard: what is told; an error in it ends the search, and never reaches the user's forward.
        is_over: asked by the hooks, for where nobody said that the fit is over.
        around: tell of calls of a module's ``forward`` that go around its hooks, too.

    Attributes:
        failure: that error, kept for whoever ends the search.
    """

    def __init__(
        self, modules: Iterable[nn.Module], heard: Heard, is_over: FitIsOver | None = None, *, around: bool = False
    ) -> None:
        self.failure: Exception | None = None
        self._heard: Heard | None = heard
        self._is_over = is_over or FitIsOver()
        self._handles: list[RemovableHandle] = []
        self._endings: list[Callable[[], None]] = []
        for module in modules:
            self._handles.append(module.register_forward_hook(self.after, with_kwargs=True))
            if around:
                self._endings.append(hear_direct_calls(module, self.after))

    @property
    def is_open(self) -> bool:
        """Whether anything is still told."""
        return self._heard is not None

    def raise_failure(self) -> None:
        """Raise the error that ended the search, if one did."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for end in self._endings:
            end()
        self._handles.clear()
        self._endings.clear()
        self._heard = None

    def after(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any = None) -> None:
        """The hook. Taken off by a hook before it, it is called once more, and without
        ``kwargs``.
        """
        # What is compiled would be compiled anew for it; the compiler is asked first.
        if is_compiling() or self._heard is None or self._is_over():
            return
        if self.failure is not None or not torch.is_grad_enabled() or isinstance(module, torch.jit.ScriptModule):
            return
        try:
            self._heard(module, inputs, kwargs, outputs)
        except Exception as error:  # whatever it is, it is ours and must not break the user's forward
            self.failure = error

    def __getstate__(self) -> dict[str, Any]:
        return {"failure": None, "_heard": None, "_is_over": FitIsOver(), "_handles": [], "_endings": []}
