"""Hooks that bring back what an operation saved for its backward pass, as activation
checkpointing has.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.graph.pure import is_pure

_autograd: Any = cast("Any", torch)._C._autograd

TELLS_HOOKS = hasattr(_autograd.SavedTensor, "unpack_hook")
"""Whether PyTorch shows the hooks on what an operation saved; before 2.10 it does not."""


class _Entries:
    """Where PyTorch does not show such hooks: whether any that may not run twice were in force
    since somebody began to listen.
    """

    def __init__(self) -> None:
        self._listeners = 0
        self._push: Callable[[Any, Any], None] | None = None
        self.noticed = True

    def listen(self) -> None:
        self._listeners += 1
        if self._push is None:
            self.noticed = _are_in_force()
            self._push = _autograd._push_saved_tensors_default_hooks
            _autograd._push_saved_tensors_default_hooks = self._entered

    def leave(self) -> None:
        self._listeners -= 1
        if not self._listeners and self._push is not None:
            _autograd._push_saved_tensors_default_hooks, self._push = self._push, None
            self.noticed = True

    def _entered(self, pack: Any, unpack: Any) -> None:
        self.noticed = self.noticed or not (is_pure(pack) and is_pure(unpack))
        if self._push is not None:
            self._push(pack, unpack)


_entries = _Entries()


def listen() -> Callable[[], None]:
    """From now on notice hooks on saved tensors that come into force, until what is returned
    is called. Where PyTorch tells of them there is nothing to do.
    """
    if TELLS_HOOKS:
        return _nothing
    _entries.listen()
    return _entries.leave


def may_be_hooked() -> bool:
    """Whether what an operation saved may have a hook that must not run twice, where PyTorch
    does not tell: any was in force since the first who listens began, or nobody does.
    """
    return _entries.noticed


@contextmanager
def saved_as_they_are() -> Generator[None]:
    """Keep the user's hooks (``save_on_cpu``, say) from what is saved within: only the latest pair
    of hooks is asked.
    """
    if not _are_in_force():
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
        yield


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _nothing() -> None:
    pass


def _are_in_force() -> bool:
    """PyTorch refuses to forbid them while there are any."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("asked by GradWatch"):
            return False
    except RuntimeError:
        return True
