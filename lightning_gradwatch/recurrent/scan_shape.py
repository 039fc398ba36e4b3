"""Which dimension of a scan's tensors is what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_gradwatch.recurrent.weakly_held import WeaklyHeld


@dataclass(frozen=True, slots=True)
class ScanShape(WeaklyHeld):
    """How the states of a scan lie, and how they are read out.

    Args:
        states: their shape.
        dim: which of its dimensions is time.
        batch: which is the batch; None where there is but one sequence.
        mixes: whether the readout is a matrix ``(…, out, state)``, which makes each output of all
            states; otherwise each output is a sum over states of its own, the last dimension.
    """

    states: tuple[int, ...]
    dim: int
    batch: int | None
    mixes: bool = False

    @classmethod
    def of(cls, h: Tensor, decay: Tensor, readout: Tensor | None, dim: int) -> ScanShape:
        """The shape of a scan over ``h``, or of one that is read out as ``h``.

        Raises:
            ValueError: the tensors do not fit one another.
        """
        time = _dimension(h, dim)
        batch = 0 if time else 1 if h.dim() > 2 else None
        shape = cls(tuple(h.shape), time, batch) if readout is None else _read_out(h, decay, readout, time, batch)
        if not broadcasts(decay.shape, shape.states):
            raise ValueError(
                f"`decay` must broadcast against the states {shape.states}; found {tuple(decay.shape)}. "
                "Give it all their dimensions, of size 1 where it does not vary: decay[:, None]."
            )
        return shape

    @property
    def timesteps(self) -> int:
        """Of the longest sequence."""
        return self.states[self.dim]

    @property
    def sequences(self) -> int:
        """Of the batch."""
        return 1 if self.batch is None else self.states[self.batch]

    @property
    def width(self) -> tuple[int, ...]:
        """The sizes of all other dimensions: the channels."""
        others = [size for place, size in enumerate(self.states) if place not in (self.dim, self.batch)]
        return tuple(others) or (1,)

    def time_first(self, tensor: Tensor) -> Tensor:
        """``(time, batch, …)`` of a tensor that broadcasts against the states, with a dimension of
        size 1 where it does not vary.
        """
        tensor = tensor.detach()
        tensor = tensor[(None,) * (len(self.states) - tensor.dim())]
        tensor = first(tensor, self.dim, self.batch)
        return tensor if tensor.dim() > 2 else tensor[..., None]

    def output_time_first(self, tensor: Tensor) -> Tensor:
        """The same of what is read out, or its gradient."""
        if self.mixes:
            return ScanShape(tuple(tensor.shape), self.dim, self.batch).time_first(tensor)
        return self.time_first(tensor[..., None])

    def readout_time_first(self, readout: Tensor, output: Tensor) -> Tensor:
        """``(time | 1, batch | 1, out, state)`` of a matrix that reads the states out, otherwise as
        the states lie.
        """
        readout = readout.detach()
        if not self.mixes:
            return self.time_first(_per_channel(readout, output, self.batch)[0])
        return first(readout[(None,) * (len(self.states) + 1 - readout.dim())], self.dim, self.batch)


def first(tensor: Tensor, dim: int, batch: int | None) -> Tensor:
    """Time and batch before all else; where there is no batch, one of size 1."""
    return tensor.movedim(dim, 0)[:, None] if batch is None else tensor.movedim((dim, batch), (0, 1))


def broadcasts(shape: Sequence[int], full: Sequence[int]) -> bool:
    """Whether a shape broadcasts to another one, which it leaves as it is."""
    pairs = zip(reversed(shape), reversed(full), strict=False)
    return len(shape) <= len(full) and all(size in (1, other) for size, other in pairs)


def _per_channel(readout: Tensor, output: Tensor, batch: int | None) -> list[Tensor]:
    """The ways in which a readout with a state dimension for each output broadcasts to
    ``(*output, state)``: as it is, or as ``(batch, time, state)``, which all channels share.
    """
    leading = readout.dim() - 1
    shared = (
        leading >= 1 + (batch is not None)
        and leading < output.dim()
        and broadcasts(readout.shape[:-1], output.shape[:leading])
    )
    ways = [readout] if broadcasts(readout.shape, (*output.shape, readout.shape[-1])) else []
    if shared and any(size > 1 for size in readout.shape[:-1]):
        ways.append(readout[(..., *(None,) * (output.dim() - leading), slice(None))])
    return ways


def _dimension(h: Tensor, dim: int) -> int:
    if not -h.dim() <= dim < h.dim():
        raise ValueError(f"`dim` must be a dimension of `h`, the one of time; found {dim} beside {tuple(h.shape)}.")
    return dim % h.dim()


def _read_out(y: Tensor, decay: Tensor, readout: Tensor, time: int, batch: int | None) -> ScanShape:
    """The one way in which output, decay and readout fit."""
    possible = [
        shape for shape in (_mixed(y, readout, time, batch), _apart(y, readout, time, batch)) if shape is not None
    ]
    fits = [shape for shape in possible if broadcasts(decay.shape, shape.states)]
    # A decay of one dimension per state alone belongs to the one state vector of y = C h.
    plain = [shape for shape in fits if shape.mixes and decay.dim() < 2]
    fits = plain or fits
    if len(fits) == 1:
        return fits[0]
    shapes = f"{tuple(readout.shape)} beside an output {tuple(y.shape)} and a decay {tuple(decay.shape)}"
    if fits:
        raise ValueError(
            f"`readout` must fit in one way; found {shapes}, which may be a matrix or a sum for each channel. Give `decay` all "
            "the dimensions of the states, of size 1 where it does not vary."
        )
    raise ValueError(
        f"`readout` must be a matrix (…, out, state) with decay (…, state), or hold a state dimension for each channel of the output, "
        f"(…, channel, state) or (batch, time, state), with decay (…, channel, state); found {shapes}."
    )


def _mixed(y: Tensor, readout: Tensor, time: int, batch: int | None) -> ScanShape | None:
    """y = C h with a matrix C and one state vector a timestep."""
    last = y.dim() - 1
    if readout.dim() < 2 or last in (time, batch) or y.dim() != 2 + (batch is not None):
        return None
    if readout.shape[-2] != y.shape[-1] or not broadcasts(readout.shape[:-2], y.shape[:-1]):
        return None
    return ScanShape((*y.shape[:-1], readout.shape[-1]), time, batch, mixes=True)


def _apart(y: Tensor, readout: Tensor, time: int, batch: int | None) -> ScanShape | None:
    """y = Σₙ Cₙ hₙ, where each channel has states of its own.

    Raises:
        ValueError: the readout may be meant in two ways.
    """
    ways = _per_channel(readout, y, batch) if readout.dim() else []
    if len(ways) > 1:
        raise ValueError(
            f"`readout` must fit in one way; found {tuple(readout.shape)} beside an output {tuple(y.shape)}, whose first and last "
            "dimensions it fits alike. Give it all the dimensions of the states, of size 1 where it does not vary: readout[:, :, None]."
        )
    return ScanShape((*y.shape, readout.shape[-1]), time, batch) if ways else None
