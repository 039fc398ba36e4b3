"""Whether the states of a scan are what its recurrence makes of its decay and inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.channels import Mismatch
from lightning_gradwatch.recurrent.measure.anchors import norm
from lightning_gradwatch.recurrent.measure.scan_reader import ScanReader

TOLERANCES = {
    torch.float64: 1e-8,
    torch.complex128: 1e-8,
    torch.float32: 1e-3,
    torch.complex64: 1e-3,
    torch.float16: 1e-2,
    torch.complex32: 1e-2,
    torch.bfloat16: 5e-2,
}
"""What rounding explains. A scan in log space sums thousands of logarithms before it takes the
exponential, and keeps three digits of float32. Whole numbers are not rounded."""


def find_mismatch(reader: ScanReader, sequences: Sequence[int], lengths: Tensor) -> Mismatch | None:
    """The first own-order step at which ‖h_t − (a_t h_{t−1} + b_t)‖ exceeds the tolerance, relative
    to the norms of all three; None if none does, or the tensors are no longer those of the forward.

    The first step is left out: what state came in there is not known. So is what is not finite.
    """
    scan = reader.scan
    if scan.changed() or reader.timesteps < 2:
        return None
    sizes = (reader.timesteps - 1, len(lengths))
    off, of = (torch.zeros(sizes, dtype=torch.float64) for _ in range(2))
    for channels in reader.chunks():
        h, a, b = reader.states(channels), reader.decay(channels), reader.inputs(channels)
        kept, added = (a[1:] if len(a) > 1 else a) * h[:-1], (b[1:] if len(b) > 1 else b).expand_as(h[1:])
        off = torch.hypot(off, _norm(h[1:] - kept - added))
        of = torch.hypot(of, _norm(h[1:]) + _norm(kept) + _norm(added))
    steps = torch.arange(1, reader.timesteps)[:, None]
    first = reader.timesteps - lengths if scan.reverse else torch.zeros_like(lengths)
    inside = (steps > first) & (steps < first + lengths)
    error = torch.where(inside & (of > 0), off / of, 0.0)
    tolerance = max(
        TOLERANCES.get(tensor.dtype, 0.0) for tensor in (scan.state, scan.decay, scan.inputs) if tensor is not None
    )
    bad = torch.nonzero((error > tolerance).any(1))
    if not len(bad):
        return None
    step = int(bad[0])
    row = int(error[step].nan_to_num(0.0).argmax())
    time = reader.timesteps - 2 - step if scan.reverse else step + 1
    return Mismatch(time, sequences[row], float(error[step, row]), tolerance)


def differs(mismatch: Mismatch) -> str:
    """Why such a profile is not exact."""
    return (
        f"the scan's output differs from its recurrence from timestep {mismatch.timestep} on (sequence {mismatch.sequence}: by "
        f"{mismatch.error:.2g} of its size)"
    )


def _norm(tensor: Tensor) -> Tensor:
    return norm(tensor.abs()).cpu().double()
