"""Passes through the graph that are none of the training's: what is kept and what is bounded in a
backward pass rests meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch

_KEY = "lightning_gradwatch.pauses"
_state = cast("Any", torch)._C
"""Autograd hands what is kept there on to each thread in which it works for a pass, and to no
other: a pass that begins in a pause is paused in all of its threads, and the training's own, in
others at the same time, is not.
"""


class _Open:
    """How many pauses there are in all threads: while there is none, nobody looks any further."""

    count = 0
    lock = threading.Lock()


@contextmanager
def paused() -> Generator[None]:
    """What this thread does within, and the backward passes that it begins, are none of the
    training's. Pauses may be nested.
    """
    depth = _depth()
    with _Open.lock:
        _Open.count += 1
    _state._stash_obj_in_tls(_KEY, depth + 1)
    try:
        yield
    finally:
        _state._stash_obj_in_tls(_KEY, depth)
        with _Open.lock:
            _Open.count -= 1


def is_paused() -> bool:
    """Whether what runs through the graph now is no backward pass of the training."""
    return bool(_Open.count) and _depth() > 0


def _depth() -> int:
    return _state._get_obj_in_tls(_KEY) if _state._is_key_in_tls(_KEY) else 0
