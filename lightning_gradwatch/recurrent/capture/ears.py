"""Hooks that are made once and put onto another place of the graph at every step."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor


class Ear:
    """Keeps the gradients that arrive at one result of an operation.

    What autograd calls is the ``append`` of a list. It is put on as ``Tensor.register_hook`` puts
    on its own, by a dictionary of hooks, here that of a tensor which stands in: so putting it on is
    one call into PyTorch and makes nothing anew. It is called in its turn among the tensor's
    hooks, thus put on when the model has put on all of its own.

    Args:
        number: which of an operation's results it is for.

    Attributes:
        gradients: what arrived, None for none.
        idle: how many hold the hooks while no graph does.
    """

    __slots__ = ("gradients", "hooks", "idle", "number", "stand_in")

    def __init__(self, number: int) -> None:
        self.number = number
        self.gradients: list[Tensor | None] = []
        self.hooks: OrderedDict[int, Any] = OrderedDict({0: self.gradients.append})
        self.stand_in = _result(number)
        cast("Any", self.stand_in)._backward_hooks = self.hooks
        self.idle = sys.getrefcount(self.hooks)


class Ears:
    """Those that are at hand."""

    def __init__(self) -> None:
        self._free: dict[int, list[Ear]] = {}

    def listen(self, node: Any, number: int) -> Ear:
        """Have one keep what arrives at a result of an operation."""
        free = self._free.get(number)
        ear = free.pop() if free else Ear(number)
        if sys.getrefcount(ear.hooks) != ear.idle:  # somebody keeps the graph of an earlier step
            ear.hooks.clear()
            ear = Ear(number)
        node._register_hook_dict(ear.stand_in)
        return ear

    def give_back(self, ears: Iterable[Ear]) -> None:
        """Nobody reads any more what these have kept."""
        free = self._free
        for ear in ears:
            ear.gradients.clear()
            free.setdefault(ear.number, []).append(ear)

    def close(self) -> None:
        """Let go of them."""
        self._free.clear()


def _result(number: int) -> Tensor:
    """A tensor that is the result of this number of its operation."""
    if not number:
        return torch.Tensor()
    with torch.enable_grad():
        return torch.zeros(number + 1, device="cpu", requires_grad=True).unbind(0)[number]
