"""The norms of sharded gradients, put together of every process's part.

Not by a collective: one would hang, or answer another's, where a process does not watch, or watches
no more after an error. The processes leave their numbers in the store that they share, and the
first of those which hold a part collects them.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from lightning_gradwatch.store import common_store

Norms = Mapping[int, float]
"""Norm of a gradient by the place of its parameter in the optimizer."""

_ON_THE_WAY = 16
"""Steps. More of them that are not collected, and somebody takes no part."""

_LAST = 4
"""Steps. Who has not given its part of more of them takes no part: sharded weights keep the
processes together."""

_PATIENCE = 20.0
"""Seconds that the end of a training waits for the last steps."""

_uses: Counter[str] = Counter()


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def holders(tensors: Iterable[Tensor]) -> list[int] | None:
    """The ranks that hold parts of them, in order; empty where all are whole, None where it is not
    the same ones for each.
    """
    meshes = {tuple(cast("Any", one).device_mesh.mesh.flatten().tolist()) for one in tensors if is_sharded(one)}
    return None if len(meshes) > 1 else sorted(next(iter(meshes), ()))


def counts_here(gradient: Tensor) -> bool | None:
    """Whether this process's part of a gradient counts: of copies, one does; of a whole tensor the
    first process's. None where the parts are yet to be summed.
    """
    if not is_sharded(gradient):
        return torch.distributed.get_rank() == 0
    sharded = cast("Any", gradient)
    if any(placement.is_partial() for placement in sharded.placements):
        return None
    at = sharded.device_mesh.get_coordinate() or ()
    return not any(placement.is_replicate() and place for placement, place in zip(sharded.placements, at, strict=True))


def audit_name(run: str | None) -> str:
    """The same on every process for what watches together, and no other's.

    Args:
        run: that of the run log; None without one.
    """
    run = run or "none"
    _uses[run] += 1
    return f"lightning_gradwatch/clip/{run}/{_uses[run]}"


class Parts:
    """Of the gradients of one optimizer.

    Args:
        name: the same on every process.
        ranks: that hold parts, in order.

    Attributes:
        collects: whether this process puts them together.
        missing: whether it was given up, because not every process gives its part.
    """

    def __init__(self, name: str, ranks: Sequence[int]) -> None:
        self._name, self._ranks = name, list(ranks)
        self._rank = torch.distributed.get_rank()
        self.collects = self._rank == self._ranks[0]
        self.missing = False
        self._given: list[int] = []

    def give(self, step: int, before: Norms, after: Norms) -> None:
        """Leave this process's part of the norms at a step, unless nobody collects them."""
        with self._lost():
            self.missing |= self._is_full()
            if not self.missing:
                numbers = json.dumps([list(before.items()), list(after.items())])
                common_store().set(self._key(step, self._rank), numbers)
                self._given.append(step)

    def take(self, *, wait: bool) -> list[tuple[int, Norms, Norms]]:
        """Step, norms before and norms after of the whole gradients, of the steps that are
        complete.

        Args:
            wait: for the others; not for one that watches no more.
        """
        taken: list[tuple[int, Norms, Norms]] = []
        until = time.monotonic() + (_PATIENCE if wait and len(self._given) <= _LAST else 0.0)
        with self._lost():
            while self.collects and not self.missing and self._given and self._is_complete(self._given[0], until):
                step = self._given.pop(0)
                taken.append((step, *self._collect(step)))
        self.missing |= wait and self.collects and bool(self._given)
        return taken

    def leave(self) -> None:
        """Nothing more will be given. Calling it again does nothing."""
        with self._lost():
            if not self.collects:
                common_store().set(self._left(self._rank), "")

    @contextmanager
    def _lost(self) -> Generator[None]:
        """Where the processes are no longer known to one another, or the one that keeps the store
        has ended, there is nothing to be told.
        """
        try:
            yield
        except (RuntimeError, ValueError):
            self.missing = True

    def _is_full(self) -> bool:
        """Whether as many steps as may be are on their way; of them this process knows the oldest
        one alone to be collected or not.
        """
        if len(self._given) < _ON_THE_WAY:
            return False
        return self.collects or common_store().check([self._key(self._given.pop(0), self._rank)])

    def _is_complete(self, step: int, until: float) -> bool:
        store, keys = common_store(), {rank: self._key(step, rank) for rank in self._ranks}
        while not store.check(list(keys.values())):
            gone = [rank for rank in self._ranks if store.check([self._left(rank)])]
            if time.monotonic() >= until or not all(store.check([keys[rank]]) for rank in gone):
                return False
            time.sleep(0.002)
        return True

    def _collect(self, step: int) -> tuple[Norms, Norms]:
        store = common_store()
        parts: list[Any] = []
        for rank in self._ranks:
            parts.append(json.loads(store.get(self._key(step, rank))))
            store.delete_key(self._key(step, rank))
        return _whole(before for before, _ in parts), _whole(after for _, after in parts)

    def _key(self, step: int, rank: int) -> str:
        return f"{self._name}/{step}/{rank}"

    def _left(self, rank: int) -> str:
        return f"{self._name}/left/{rank}"


def _whole(parts: Iterable[Iterable[tuple[int, float]]]) -> Norms:
    norms: dict[int, float] = {}
    for part in parts:
        for place, norm in part:
            norms[place] = _joined(norms.get(place, 0.0), norm)
    return norms


def _joined(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else math.hypot(one, other)
