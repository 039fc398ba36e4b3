"""Where a sequence's timesteps lie in a call's tensors: time-major, batch-first, unbatched or
packed, or masked past each one's end; forwards or in reverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.call import RecurrentCall

FORWARD, REVERSE = 0, 1
DIRECTIONS = ("forward", "reverse")


def pick_sequences(reached: axes.Bool[Tensor, " batch"], limit: int | None) -> list[int]:
    """Up to ``limit`` sequences, spread evenly over those of a batch that the loss reaches, the
    first and the last of these among them; None takes the whole batch. Touches no random generator.

    Args:
        reached: whether the loss sends a sequence anything ``(batch,)``. Where it sends none
            anything, the whole batch is chosen from.
    """
    batch = len(reached)
    if limit is None or limit >= batch:
        return list(range(batch))
    able = torch.nonzero(reached).flatten().tolist() or list(range(batch))
    if limit >= len(able):
        return able
    if limit == 1:
        return [able[len(able) // 2]]
    return [able[i * (len(able) - 1) // (limit - 1)] for i in range(limit)]


class Layout:
    """Reads chosen sequences out of a call's tensors, in a direction's own order.

    In *own order* step 0 is the first that the direction visits: the first timestep forwards, the
    last valid one in reverse. So every sequence starts at 0 and ends at its own length, whichever
    way it is read.

    Args:
        call: whose tensors.
        sequences: indices into its batch; None takes all.
    """

    def __init__(self, call: RecurrentCall, sequences: list[int] | None = None) -> None:
        self._packed = call.batch_sizes is not None
        self._unbatched = not self._packed and call.input.dim() == 2
        self._batch_first = call.shape.batch_first and not self._packed and not self._unbatched
        self.device = call.output.device
        if call.batch_sizes is not None:
            self.batch_size = int(call.batch_sizes[0])
            self.timesteps = len(call.batch_sizes)
        elif self._unbatched:
            self.timesteps, self.batch_size = len(call.input), 1
        else:
            time, batch = (1, 0) if self._batch_first else (0, 1)
            self.timesteps, self.batch_size = call.input.shape[time], call.input.shape[batch]
        self.sequences = list(range(self.batch_size)) if sequences is None else sequences
        self._chosen = torch.tensor(self.sequences, dtype=torch.long)
        self.lengths = torch.full((len(self.sequences),), self.timesteps, dtype=torch.long)
        self._rows: Tensor | None = None
        self._packed_rows = 0
        self._is_padded = call.mask is not None
        if call.batch_sizes is not None:
            self._read_packed(call.batch_sizes, call.unsorted_indices)
        elif call.mask is not None:
            self._read_masked(call.mask)
        self.uniform = bool((self.lengths == self.timesteps).all())
        self._whole_batch = len(self.sequences) == self.batch_size

    def _read_packed(self, batch_sizes: Tensor, unsorted_indices: Tensor | None) -> None:
        position = self._chosen if unsorted_indices is None else unsorted_indices.cpu()[self._chosen]
        self._packed_rows = int(batch_sizes.sum())
        offsets = torch.cumsum(batch_sizes, 0) - batch_sizes
        self._rows = offsets[:, None] + position[None, :]  # (time, sequence): row of the packed data
        self.lengths = (batch_sizes[:, None] > position[None, :]).sum(0)

    def _read_masked(self, mask: Tensor) -> None:
        mask = mask if self._batch_first else mask.T
        self.lengths = mask.detach().cpu()[self._chosen].sum(1).clamp_min(1)
        steps, sequences = torch.arange(self.timesteps)[:, None], self._chosen[None, :]
        in_order = (self.timesteps, 1) if self._batch_first else (1, self.batch_size)
        self._rows = sequences * in_order[0] + steps * in_order[1]

    def valid(self, start: int, stop: int) -> axes.Bool[Tensor, "time sequence"]:
        """Which own-order steps lie within each sequence:
        ``(stop - start, sequences)``, boolean.
        """
        return torch.arange(start, stop)[:, None] < self.lengths[None, :]

    def times(self, direction: int, start: int, stop: int) -> axes.Int[Tensor, "time sequence"]:
        """Timesteps as the caller counts them, of own-order steps:
        ``(stop - start, sequences)``; clamped where invalid.
        """
        steps = torch.arange(start, stop)[:, None].expand(-1, len(self.sequences))
        return steps if direction == FORWARD else (self.lengths[None, :] - 1 - steps).clamp_min(0)

    def read(
        self, tensor: axes.Float[Tensor, "... width"], direction: int, start: int, stop: int
    ) -> axes.Float[Tensor, "time sequence width"]:
        """Own-order steps ``start`` to ``stop`` of a tensor laid out as the input or
        output: ``(time, sequence, width)``.

        Steps past a sequence's end read as zeros.
        """
        if self._rows is not None:
            times = self.times(direction, start, stop)
            rows = self._rows.gather(0, times.clamp_max(self.timesteps - 1))
            valid = self.valid(start, stop)
            rows = torch.where(valid, rows, 0).to(tensor.device)
            values = (tensor.flatten(0, 1) if self._is_padded else tensor)[rows]
            return values if self.uniform else values.masked_fill(~valid.to(tensor.device)[..., None], 0)
        if self._unbatched:
            tensor = tensor[:, None]
        elif self._batch_first:
            tensor = tensor.transpose(0, 1)
        backwards = slice(self.timesteps - stop, self.timesteps - start)
        part = tensor[backwards if direction == REVERSE else slice(start, stop)]
        if not self._whole_batch:
            part = (
                part.index_select(1, self._chosen.to(tensor.device)) if not self._batch_first else self._rows_of(part)
            )
        return part.flip(0) if direction == REVERSE else part

    def _rows_of(self, part: axes.Float[Tensor, "time batch width"]) -> axes.Float[Tensor, "time sequence width"]:
        """The chosen sequences, copied as they lie in memory where the batch comes first."""
        rows = part.transpose(0, 1).index_select(0, self._chosen.to(part.device))
        return rows.transpose(0, 1).contiguous()

    def write(self, padded: axes.Float[Tensor, "time batch width"]) -> axes.Float[Tensor, "... width"]:
        """The inverse of :meth:`read` of all sequences, forwards:
        ``(time, sequence, width)`` laid out as the input is.
        """
        if self._rows is not None:
            valid = self.valid(0, self.timesteps)
            rows = padded.new_empty(self._packed_rows, padded.shape[-1])
            rows[self._rows[valid].to(padded.device)] = padded[valid.to(padded.device)]
            return rows
        if self._unbatched:
            return padded[:, 0]
        return padded.transpose(0, 1) if self._batch_first else padded

    def read_padded(
        self, tensor: axes.Float[Tensor, "whole sequence width"], direction: int, start: int, stop: int
    ) -> axes.Float[Tensor, "time sequence width"]:
        """As :meth:`read`, of a tensor that is ``(time, sequence, width)`` already,
        with the chosen sequences only.
        """
        if direction == FORWARD:
            return tensor[start:stop]
        if self.uniform:
            return tensor[self.timesteps - stop : self.timesteps - start].flip(0)
        times = self.times(direction, start, stop).to(tensor.device)
        values = tensor[times, torch.arange(len(self.sequences), device=tensor.device)]
        return values.masked_fill(~self.valid(start, stop).to(tensor.device)[..., None], 0)

    def read_state(
        self, tensor: axes.Float[Tensor, "cascade ... width"] | None, index: int
    ) -> axes.Float[Tensor, "sequence width"] | None:
        """The chosen sequences of one layer and direction of h0, c0, h_n
        or c_n: ``(sequence, width)``.
        """
        if tensor is None:
            return None
        state = tensor[index]
        return state[None] if self._unbatched else state[self._chosen.to(state.device)]

    def dropout_shape(self, width: int) -> tuple[int, ...]:
        """The shape in which PyTorch draws the mask between two layers."""
        if self._rows is not None:
            return (self._packed_rows, width)
        return (self.timesteps, self.batch_size, width)

    def read_dropout(
        self, mask: axes.Float[Tensor, "... width"], start: int, stop: int
    ) -> axes.Float[Tensor, "time sequence width"]:
        """The chosen sequences of a mask drawn in :meth:`dropout_shape`, forwards."""
        if self._rows is not None:
            return self.read(mask, FORWARD, start, stop)
        return mask[start:stop][:, self._chosen.to(mask.device)]
