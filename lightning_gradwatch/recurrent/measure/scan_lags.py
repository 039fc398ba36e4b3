"""The lagged gradients of a scan: of its states as a whole, and channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.profile import Floats
from lightning_gradwatch.recurrent.measure.anchors import norm
from lightning_gradwatch.recurrent.measure.diagonal import shrinkage
from lightning_gradwatch.recurrent.measure.scan_reader import ScanReader
from lightning_gradwatch.thresholds import HORIZON_RATIO


@dataclass(frozen=True, slots=True)
class Lags:
    """What the anchors' losses send back.

    Args:
        curves: ``(curve, lag)``, each 1 at lag 0, NaN past its reach.
        horizons: of each sequence's last anchor, by channel ``(sequence, channel)``: the first lag
            at which its decays have multiplied to under 1 %, inf where they never do.
        longest: the longest lag seen.
        size: the median |a| over channels, geometric mean over time.
    """

    curves: Floats
    horizons: Floats
    longest: int
    size: float


def follow_back(reader: ScanReader, anchors: Sequence[Sequence[int]], first: Tensor) -> Lags:
    """Follow what the loss sends to each anchor back to the sequence's begin.

    No phase is needed for a norm. Anchors at one timestep share the products of the decays.

    Args:
        anchors: own-order steps of each sequence, its last one first.
        first: where each sequence begins.
    """
    squares: dict[tuple[int, int], Tensor | float] = {}
    horizons: dict[int, Tensor] = {}
    rates: list[Tensor] = []
    weights = {step: _weights(reader, step, of) for step, of in _by_step(anchors).items()}
    ends = {row: steps[0] for row, steps in enumerate(anchors) if steps}
    for channels in reader.chunks(reader.decay_width):
        decay = reader.own_decay(channels)
        for step, rows in _by_step(anchors).items():
            products = shrinkage(decay, step)  # (lag, sequence | 1, channel)
            for row, weight in zip(rows, weights[step], strict=True):
                own = products[: step - int(first[row]) + 1, row if products.shape[1] > 1 else 0]
                squares[step, row] = squares.get((step, row), 0.0) + own.square() @ weight[channels]
                if ends[row] == step:
                    fallen = own < HORIZON_RATIO
                    lag = fallen.int().argmax(0).to(own).masked_fill(~fallen.any(0), torch.inf)
                    horizons[row] = torch.cat([horizons.get(row, lag[:0]), lag])
                    rates.append(_rate(own))
    return Lags(
        curves=_table([torch.as_tensor(found).sqrt().cpu() for found in squares.values()]),
        horizons=_rows(horizons),
        longest=max((ends[row] - int(first[row]) for row in ends), default=0),
        size=float(torch.cat(rates).median()) if rates else np.nan,
    )


def _by_step(anchors: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Own-order step → the sequences that have an anchor there."""
    found: dict[int, list[int]] = {}
    for row, steps in enumerate(anchors):
        for step in steps:
            found.setdefault(step, []).append(row)
    return found


def _weights(reader: ScanReader, step: int, rows: Sequence[int]) -> Tensor:
    """The share of each decay in ‖d_τ‖²: ``(sequence, channel)``."""
    sent = reader.direct_at(step)[list(rows)].abs()
    return reader.over_own((sent / norm(sent)[:, None]).square())


def _rate(products: Tensor) -> Tensor:
    """The geometric mean of |a| over the lags at which a channel holds anything."""
    held = products.gt(0).sum(0).sub(1)
    last = products.gather(0, held[None])[0]
    return torch.where(held > 0, last.pow(1 / held.clamp_min(1)), 0.0 if len(products) > 1 else torch.nan)


def _rows(horizons: dict[int, Tensor]) -> Floats:
    if not horizons:
        return np.zeros((0, 0))
    return torch.stack([horizons[row] for row in sorted(horizons)]).cpu().double().numpy()


def _table(curves: Sequence[Tensor]) -> Floats:
    table = np.full((len(curves), max(map(len, curves), default=0)), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = np.nan_to_num(curve.numpy(), nan=np.inf, posinf=np.inf)
    return table
