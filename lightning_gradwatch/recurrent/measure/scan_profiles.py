"""From a scan to its profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.channels import Channels
from lightning_gradwatch.profile import Floats, Profile
from lightning_gradwatch.recurrent.layout import pick_sequences
from lightning_gradwatch.recurrent.measure.anchors import norm, spread, too_small
from lightning_gradwatch.recurrent.measure.diagonal import adjoint
from lightning_gradwatch.recurrent.measure.scan_check import differs, find_mismatch
from lightning_gradwatch.recurrent.measure.scan_lags import Lags, follow_back
from lightning_gradwatch.recurrent.measure.scan_reader import ScanReader
from lightning_gradwatch.recurrent.scan import KIND, Scan
from lightning_gradwatch.thresholds import FLOOR

_HALF = (torch.float16, torch.bfloat16, torch.complex32)
"""Formats in which the training's own backward pass rounds too much to be repeated exactly."""


@dataclass(frozen=True, slots=True)
class Norms:
    """``(time, sequence)``, float64 on the CPU, in own order."""

    direct: Tensor
    total: Tensor


@torch.no_grad()
def scan_profile(scan: Scan, max_sequences: int | None, anchors: int) -> Profile:
    """The profile of a scan's states.

    d_t is what arrives at the states, or at what is read out of them; g_t = d_t + ā_{t+1} ⊙ g_{t+1}
    is the total gradient, and the loss of an anchor τ sends (∏_{j=τ−k+1..τ} ā_j) ⊙ d_τ to the state
    k timesteps before. It needs the decays, and nothing that the scan does inside.

    Args:
        max_sequences: of the batch; None takes all.
        anchors: of each sequence.
    """
    reached = _reached(scan)
    sequences = pick_sequences(reached, max_sequences)
    reader, lengths = ScanReader(scan, sequences), _lengths(scan, sequences)
    norms = _norms(reader, lengths)
    chosen = _anchors(norms.direct, _normal(scan), anchors)
    lags = follow_back(reader, chosen, _first(scan, lengths))
    mismatch = None if scan.inputs is None else find_mismatch(reader, sequences, lengths)
    return Profile(
        module=scan.module,
        call=scan.index,
        kind=KIND,
        layer=0,
        direction="reverse" if scan.reverse else "forward",
        state="h",
        timesteps=scan.shape.timesteps,
        batch_size=scan.shape.sequences,
        sequences=tuple(sequences),
        lengths=tuple(lengths.tolist()),
        total=_by_time(norms.total, scan, lengths),
        direct=_by_time(norms.direct, scan, lengths),
        curves=lags.curves,
        inexact_reason=_inexact(scan, norms) or (None if mismatch is None else differs(mismatch)),
        fused=False,
        with_gradient=int(reached.sum()),
        channels=_channels(lags),
        mismatch=mismatch,
    )


def _reached(scan: Scan) -> Tensor:
    """Which sequences of the batch the loss sends anything ``(batch,)``, boolean, on the CPU."""
    gradient = scan.slot.value()
    assert gradient is not None
    rows = gradient[None] if scan.shape.batch is None else gradient.movedim(scan.shape.batch, 0)
    return rows.flatten(1).ne(0).any(1).cpu()


def _lengths(scan: Scan, sequences: list[int]) -> Tensor:
    given = scan.lengths
    if given is None:
        return torch.full((len(sequences),), scan.shape.timesteps)
    every = given.detach().cpu() if isinstance(given, Tensor) else torch.tensor(given)
    return every[sequences].long().clamp(0, scan.shape.timesteps)


def _first(scan: Scan, lengths: Tensor) -> Tensor:
    """The own-order step at which each sequence begins: in reverse padding comes before it."""
    return scan.shape.timesteps - lengths if scan.reverse else torch.zeros_like(lengths)


def _norms(reader: ScanReader, lengths: Tensor) -> Norms:
    shape = (reader.timesteps, len(lengths))
    direct, total = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    for channels in reader.chunks():
        sent = reader.direct(channels)
        direct = torch.hypot(direct, norm(sent.abs()).cpu().double())
        total = torch.hypot(total, norm(adjoint(reader.decay(channels), sent).abs()).cpu().double())
    # What the format of the training's own gradients does not hold was infinite there.
    total[total > torch.finfo(reader.scan.state.dtype).max] = torch.inf
    steps = torch.arange(reader.timesteps)[:, None]
    first = _first(reader.scan, lengths)
    outside = (steps < first) | (steps >= first + lengths)
    return Norms(direct.masked_fill(outside, 0.0), total)


def _anchors(direct: Tensor, normal: float, count: int) -> list[list[int]]:
    """Of each sequence, the own-order steps of its anchors, the last one first: spread over those
    that the loss reaches.
    """
    chosen: list[list[int]] = []
    for norms in direct.T:
        precise = norms >= normal
        reached = torch.nonzero(precise if bool(precise.any()) else norms).flatten().tolist()
        chosen.append([reached[rank] for rank in reversed(spread(len(reached), count, False))])
    return chosen


def _normal(scan: Scan) -> float:
    """The smallest number that the format of the gradient holds with all its digits."""
    gradient = scan.slot.value()
    return 0.0 if gradient is None else torch.finfo(gradient.dtype).tiny


def _inexact(scan: Scan, norms: Norms) -> str | None:
    if scan.lost():
        return "its state is a view of another tensor and was changed in place, and its gradient was not seen"
    changed = [name for name in scan.changed() if name in ("decay", "readout")]
    if changed:
        return f"its {changed[0]} was changed in place after the forward"
    tensors = [scan.state, scan.decay, *([] if scan.readout is None else [scan.readout])]
    narrow = next((tensor.dtype for tensor in tensors if tensor.dtype in _HALF), None)
    if narrow is not None:
        return f"computed in {str(narrow).removeprefix('torch.')}, replayed in float64"
    normal, direct = _normal(scan), norms.direct[norms.direct.isfinite()]
    small = (direct > 0) & (direct < normal) & (direct >= FLOOR * direct.amax()) if len(direct) else direct
    return too_small(normal) if small.any() else None


def _by_time(norms: Tensor, scan: Scan, lengths: Tensor) -> Floats:
    """Own order → ``(sequence, time)`` as the caller counts, NaN past a sequence's end."""
    placed = norms.flip(0) if scan.reverse else norms
    outside = torch.arange(len(placed))[:, None] >= lengths
    return placed.masked_fill(outside, torch.nan).T.contiguous().numpy()


def _channels(lags: Lags) -> Channels | None:
    """The lower median over the sequences, of which one that outlives its lags is the longest."""
    if not lags.longest or np.isnan(lags.size):  # no past, or a decay that is no number
        return None
    middle = np.sort(lags.horizons, axis=0)[(len(lags.horizons) - 1) // 2]
    outlives = np.isinf(middle)
    horizons = np.sort(np.where(outlives, lags.longest, middle)).astype(np.int64)
    return Channels(horizons, int(outlives.sum()), lags.size)
