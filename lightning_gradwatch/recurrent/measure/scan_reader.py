"""Reads the tensors of a scan, some sequences and channels at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.scan import Scan

CHUNK = 2**22
"""Numbers of one tensor that are worked on at once: 32 MB in float64."""


class ScanReader:
    """In *own order* step 0 is the first that the scan visits, in reverse the last timestep.
    Everything is read in float64, or complex128.

    Args:
        scan: whose gradient has arrived.
        sequences: of the batch.
    """

    def __init__(self, scan: Scan, sequences: Sequence[int]) -> None:
        self.scan, self._shape = scan, scan.shape
        gradient = scan.slot.value()
        assert gradient is not None
        self._device = gradient.device
        self._sequences = torch.tensor(sequences, dtype=torch.long, device=self._device)
        lay = self._shape.time_first if scan.readout is None else self._shape.output_time_first
        self._gradient = lay(gradient)
        readout = scan.readout
        self._readout = None if readout is None else self._shape.readout_time_first(readout, scan.state)
        self._decay = self._shape.time_first(scan.decay.to(self._device))
        self._complex = scan.decay.is_complex() or gradient.is_complex()
        self.timesteps = self._shape.timesteps
        self.width = prod(self._shape.width)

    @property
    def decay_width(self) -> int:
        """How many channels have decays of their own."""
        return prod(self._decay.shape[2:])

    def chunks(self, width: int | None = None) -> Iterator[axes.Int[Tensor, " some"]]:
        """Numbers of channels, so many at once as memory is to hold."""
        rows = max(1, self.timesteps * len(self._sequences))
        every = torch.arange(self.width if width is None else width, device=self._device)
        return iter(every.split(max(1, CHUNK // rows)))

    def decay(self, channels: axes.Int[Tensor, " channel"]) -> axes.Inexact[Tensor, "#time #sequence channel"]:
        """a, the decays."""
        return self._pick(self._decay, channels)

    def own_decay(self, channels: axes.Int[Tensor, " channel"]) -> axes.Inexact[Tensor, "#time #sequence channel"]:
        """The same, where ``channels`` count those alone that have decays of their own."""
        return self._own_order(self._wide(_columns(self._decay, self._sequences, channels)))

    def direct(self, channels: axes.Int[Tensor, " channel"]) -> axes.Inexact[Tensor, "time sequence channel"]:
        """What the loss sends to the states."""
        return self._direct(channels, slice(None))

    def direct_at(self, step: int) -> axes.Inexact[Tensor, "sequence channel"]:
        """The same of all channels at one own-order step."""
        time = self.timesteps - 1 - step if self.scan.reverse else step
        every = torch.arange(self.width, device=self._device)
        return self._direct(every, slice(time, time + 1))[0]

    def _direct(
        self, channels: axes.Int[Tensor, " channel"], times: slice
    ) -> axes.Inexact[Tensor, "time sequence channel"]:
        gradient, readout = self._gradient[times], self._readout
        if readout is None:
            return self._pick(gradient, channels)
        readout = readout[times] if len(readout) > 1 else readout
        if not self._shape.mixes:
            return self._pick(gradient, channels) * self._pick(readout, channels).conj()
        sent = self._own_order(self._wide(_rows(gradient, self._sequences)))
        matrix = self._own_order(self._wide(_rows(readout, self._sequences)[..., channels])).conj()
        if matrix.shape[:2] == (1, 1):
            return sent @ matrix[0, 0]
        return (sent[..., None, :] @ matrix)[..., 0, :]

    def states(self, channels: axes.Int[Tensor, " channel"]) -> axes.Inexact[Tensor, "time sequence channel"]:
        """h, the states."""
        return self._pick(self._shape.time_first(self.scan.state), channels)

    def inputs(self, channels: axes.Int[Tensor, " channel"]) -> axes.Inexact[Tensor, "#time #sequence channel"]:
        """b, the inputs."""
        assert self.scan.inputs is not None
        return self._pick(self._shape.time_first(self.scan.inputs.to(self._device)), channels)

    def over_own(self, squares: axes.Float[Tensor, "... channel"]) -> axes.Float[Tensor, "... width"]:
        """Sums over the channels that share their decays."""
        width, sizes = self._shape.width, self._decay.shape[2:]
        lead = squares.dim() - 1
        shared = [lead + place for place, size in enumerate(sizes) if size == 1 and width[place] > 1]
        summed = squares.unflatten(-1, width)
        return (summed.sum(shared, keepdim=True) if shared else summed).flatten(lead)

    def _pick(
        self, tensor: axes.Shaped[Tensor, "#time #batch ..."], channels: axes.Int[Tensor, " channel"]
    ) -> axes.Inexact[Tensor, "#time #sequence channel"]:
        """The chosen sequences and channels."""
        places = torch.unravel_index(channels, self._shape.width)
        index = [
            place if size > 1 else torch.zeros_like(place) for place, size in zip(places, tensor.shape[2:], strict=True)
        ]
        rows = self._sequences if tensor.shape[1] > 1 else self._sequences[:1] * 0
        return self._own_order(self._wide(tensor[(slice(None), rows[:, None], *index)]))

    def _wide(self, tensor: Tensor) -> Tensor:
        narrow = self._device.type == "mps"  # Apple's GPUs have no float64
        kinds = (torch.float32, torch.complex64) if narrow else (torch.float64, torch.complex128)
        return tensor.to(kinds[self._complex])

    def _own_order(self, tensor: axes.Inexact[Tensor, "time ..."]) -> axes.Inexact[Tensor, "time ..."]:
        return tensor.flip(0) if self.scan.reverse else tensor


def _rows(
    tensor: axes.Shaped[Tensor, " time #batch ..."], sequences: axes.Int[Tensor, " sequence"]
) -> axes.Shaped[Tensor, " time #sequence ..."]:
    return tensor if tensor.shape[1] == 1 else tensor[:, sequences]


def _columns(
    tensor: axes.Shaped[Tensor, " time #batch ..."],
    sequences: axes.Int[Tensor, " sequence"],
    channels: axes.Int[Tensor, " channel"],
) -> axes.Shaped[Tensor, " time #sequence channel"]:
    """Chosen sequences and channels of a tensor's own."""
    places = torch.unravel_index(channels, tensor.shape[2:])
    rows = sequences if tensor.shape[1] > 1 else sequences[:1] * 0
    return tensor[(slice(None), rows[:, None], *places)]
