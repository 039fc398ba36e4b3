"""How the rows of a chunk lie for a fused operator: side by side, or packed where some end."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes


class PackedRows:
    """Rows of up to ``time`` timesteps each, from the chunk's first on.

    Args:
        lengths: of each row within the chunk ``(row,)``, on the CPU; rows of 0 are left out.
        device: of the tensors.
    """

    def __init__(self, lengths: axes.Int[Tensor, " row"], time: int, device: torch.device) -> None:
        self.time, self.count = time, len(lengths)
        self.batch_sizes: Tensor | None = None
        if bool((lengths == time).all()):
            return
        order = torch.argsort(lengths, descending=True, stable=True)[: int((lengths > 0).sum())]
        valid = torch.arange(time)[:, None] < lengths[order]
        step, place = torch.nonzero(valid, as_tuple=True)
        self.batch_sizes = valid.sum(1)[: int(lengths.max())]
        self._at = step.to(device), order[place].to(device)
        self._order = order.to(device)

    def is_empty(self) -> bool:
        """Whether there is no row at all."""
        return not self.count or (self.batch_sizes is not None and not len(self._order))

    def pack(self, padded: axes.Float[Tensor, "time row width"]) -> Tensor:
        """As the operator takes it: packed data ``(entry, width)`` where rows end."""
        return padded if self.batch_sizes is None else padded[self._at]

    def unpack(self, made: Tensor) -> axes.Float[Tensor, "time row width"]:
        """The inverse; zeros past a row's end."""
        if self.batch_sizes is None:
            return made
        return made.new_zeros(self.time, self.count, made.shape[-1]).index_put_(self._at, made)

    def pack_state(self, state: axes.Float[Tensor, "row width"]) -> axes.Float[Tensor, "1 some width"]:
        """A state as the operator takes it."""
        return (state if self.batch_sizes is None else state[self._order])[None]

    def unpack_state(
        self, made: axes.Float[Tensor, "1 some width"], otherwise: axes.Float[Tensor, "row width"]
    ) -> axes.Float[Tensor, "row width"]:
        """The inverse; rows that were left out keep what they have."""
        return made[0] if self.batch_sizes is None else otherwise.index_copy(0, self._order, made[0])
