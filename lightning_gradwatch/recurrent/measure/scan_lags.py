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
    begins, steps = [int(step) for step in first], _by_step(anchors)
    weights = {step: _weights(reader, step, rows) for step, rows in steps.items()}
    following = _Following({row: decayed[0] for row, decayed in enumerate(anchors) if decayed})
    for channels in reader.chunks(reader.decay_width):
        decay = reader.own_decay(channels)
        for step, rows in steps.items():
            products = shrinkage(decay, step)  # (lag, sequence | 1, channel)
            for row, weight in zip(rows, weights[step], strict=True):
                decayed = products[: step - begins[row] + 1, row if products.shape[1] > 1 else 0]
                following.add(row, step, decayed, weight[channels])
    return following.result(begins)


class _Following:
    """Gathers what the channels send back, some of them at a time.

    Args:
        ends: sequence → the step of its last anchor.
    """

    def __init__(self, ends: dict[int, int]) -> None:
        self._ends = ends
        self._squares: dict[tuple[int, int], Tensor | float] = {}
        self._horizons: dict[int, list[Tensor]] = {row: [] for row in ends}
        self._rates: list[Tensor] = []

    def add(self, row: int, step: int, products: Tensor, weight: Tensor) -> None:
        """More channels of one anchor.

        Args:
            products: ``(lag, channel)``.
            weight: the share of each in ‖d_τ‖² ``(channel,)``.
        """
        self._squares[row, step] = self._squares.get((row, step), 0.0) + products.square() @ weight
        if step == self._ends[row]:
            self._horizons[row].append(_horizons(products))
            self._rates.append(_rate(products))

    def result(self, begins: Sequence[int]) -> Lags:
        """What was gathered; ``begins``: where each sequence begins."""
        horizons = [torch.cat(of_row) for of_row in self._horizons.values()]
        return Lags(
            curves=_table([torch.as_tensor(squares).sqrt().cpu() for squares in self._squares.values()]),
            horizons=torch.stack(horizons).cpu().double().numpy() if horizons else np.zeros((0, 0)),
            longest=max((end - begins[row] for row, end in self._ends.items()), default=0),
            size=float(torch.cat(self._rates).median()) if self._rates else np.nan,
        )


def _horizons(products: Tensor) -> Tensor:
    """Of each channel, the first lag at which it has fallen under 1 %, inf where it never does."""
    fallen = products < HORIZON_RATIO
    return fallen.int().argmax(0).to(products).masked_fill(~fallen.any(0), torch.inf)


def _by_step(anchors: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Own-order step → the sequences that have an anchor there."""
    rows: dict[int, list[int]] = {}
    for row, steps in enumerate(anchors):
        for step in steps:
            rows.setdefault(step, []).append(row)
    return rows


def _weights(reader: ScanReader, step: int, rows: Sequence[int]) -> Tensor:
    """The share of each decay in ‖d_τ‖²: ``(sequence, channel)``."""
    sent = reader.direct_at(step)[list(rows)].abs()
    return reader.over_own((sent / norm(sent)[:, None]).square())


def _rate(products: Tensor) -> Tensor:
    """The geometric mean of |a| over the lags at which a channel holds anything."""
    held = products.gt(0).sum(0).sub(1)
    last = products.gather(0, held[None])[0]
    return torch.where(held > 0, last.pow(1 / held.clamp_min(1)), 0.0 if len(products) > 1 else torch.nan)


def _table(curves: Sequence[Tensor]) -> Floats:
    table = np.full((len(curves), max(map(len, curves), default=0)), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = np.nan_to_num((curve / curve[0]).numpy(), nan=np.inf, posinf=np.inf)
    return table
