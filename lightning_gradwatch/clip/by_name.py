"""Numbers of a tensor, by the tensor's name, kept on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class ByName:
    """A vector, or matrix, whose rows have names: those of a step may be others
    than those of the step before.

    Args:
        default: a row that is not known yet.
    """

    def __init__(self, default: Tensor) -> None:
        self.default = default
        self._names: tuple[str, ...] = ()
        self._values = default.new_zeros((0, *default.shape))

    def take(self, names: Sequence[str], like: Tensor) -> Tensor:
        """The rows of these names, on the device and in the precision of ``like``."""
        values = self._values.to(like)
        if tuple(names) == self._names:
            return values
        rows, unknown = dict(zip(self._names, values.unbind(), strict=True)), self.default.to(like)
        return torch.stack([rows.get(name, unknown) for name in names])

    def put(self, names: Sequence[str], values: Tensor) -> None:
        """Set the rows of these names; those of others stay."""
        if tuple(names) != self._names:
            rows = dict(zip(self._names, self._values.to(values).unbind(), strict=True))
            rows |= dict(zip(names, values.unbind(), strict=True))
            names, values = list(rows), torch.stack(list(rows.values()))
        self._names, self._values = tuple(names), values

    def reduce(self, function: Callable[[Tensor], Tensor]) -> tuple[tuple[str, ...], Tensor]:
        """All names, and what a function makes of all rows together."""
        return self._names, function(self._values)

    def state_dict(self, *, known: bool = False) -> dict[str, Any]:
        """Names, and a tensor on the CPU; with ``known`` without
        rows that still are the default.
        """
        values = self._values.detach().cpu()
        chosen = [i for i, row in enumerate(values) if not (known and torch.equal(row, self.default.to(row)))]
        return {"names": [self._names[i] for i in chosen], "values": values[chosen]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._names, self._values = tuple(state_dict["names"]), state_dict["values"].clone()
