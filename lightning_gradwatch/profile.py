"""Norms by timestep and by lag, and what they say: how far back the gradient reaches,
and how fast it fades or grows.
"""

# Over 300 lines: what a profile holds and what it says are read beside one another.
from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.channels import Channels, Mismatch, record_of
from lightning_gradwatch.forward import Saturation
from lightning_gradwatch.padding import Ends
from lightning_gradwatch.profile_record import ProfileFields
from lightning_gradwatch.thinning import evenly, logarithmically
from lightning_gradwatch.thresholds import FLOOR, HORIZON_RATIO, STARVING_SHARE

Floats = npt.NDArray[np.float64]

INPUT = "x"
"""The ``state`` of a profile of a module's input, which is none: its influence on the loss."""


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far back the gradient reaches. ``lag``: timesteps; ``censored``: it was still
    above 1 % at the longest lag seen.
    """

    lag: int | None
    censored: bool


def gradient_horizon(lagged: Floats) -> Horizon:
    """The first lag at which ``lagged`` falls under 1 %; the longest lag, censored, if it never
    does. There is none where the curve is not finite before it falls.

    Args:
        lagged: ‖∂L_τ/∂s_{τ−k}‖/‖∂L_τ/∂s_τ‖ over lag k ``(lag,)``, lagged[0] = 1.
    """
    under = np.flatnonzero(lagged < HORIZON_RATIO)
    seen = lagged[: under[0]] if len(under) else lagged
    if not len(lagged) or not np.isfinite(seen).all():
        return Horizon(None, True)
    return Horizon(int(under[0]), False) if len(under) else Horizon(len(lagged) - 1, True)


def growth_rate(lagged: Floats) -> float | None:
    """Least-squares slope of log ``lagged`` over lag, in nats per
    timestep: < 0 vanishing, > 0 exploding.

    A finite-time Lyapunov exponent of the backward pass. Lags from the first that is not a positive
    finite number on are left out; with fewer than two left there is none.
    """
    usable = np.isfinite(lagged) & (lagged > FLOOR)
    count = len(lagged) if usable.all() else int(np.argmin(usable))
    if count < 2:
        return None
    lag = np.arange(count, dtype=np.float64)
    lag -= lag.mean()
    return float(lag @ np.log(lagged[:count]) / (lag @ lag))


@dataclass(frozen=True, slots=True)
class Profile:
    """The norms of one recurrent call, layer, direction and state, each sequence by itself.

    Args:
        module, call, kind, layer, direction, state: what was measured; ``call``
            is its number within the step.
        timesteps: of the longest sequence.
        batch_size: of the call; the sequences measured are ``sequences``, indices into it.
        lengths: of the measured sequences.
        total, direct: ‖∂L/∂s_t‖ and its part from outside the recurrence ``(sequence, time)``, NaN
            past a sequence's end; ``direct`` is None where it cannot be told apart.
        curves: the lagged gradients of every anchor of every sequence ``(curve, lag)``, each
            starting at 1, NaN past its reach, inf where the gradient is not finite.
        inexact_reason: None if the figures are exact.
        layers: of the module.
        step: optimizer steps done when the forward ran; None where that is known from elsewhere.
        truncated: whether a state came in whose past is cut off, as in
            truncated backpropagation through time.
        primary: whether this state stands for its recurrence where one must; the
            others share its lagged gradients.
        ends: the runs of equal inputs at the sequences' ends.
        gate_gradient: L1 norm of the gradient that reaches the gates' pre-activations, and thus the
            weights, over that of what the loss sends to the states; None where it is not known.
        saturation: a closer look at the gates, where ``gate_gradient`` is small.
        fused: of a module that takes whole sequences, not of a loop.
        handed_over: whether that state is a leaf whose gradient somebody may hand back by hand.
        unjoined: whether it is measured by itself although its state goes on from call to call.
        with_gradient: to how many sequences of the whole batch the loss sends
            anything; None where it is not known.
        batch_first: of the module; None where there is no such order.
        cell_cut: whether the cell state of an LSTM comes in without a graph at most timesteps, h
            with one.
        by_timestep: why the sweep of a fused call went back timestep by timestep where the fused
            operator was to do it at once, as on a GPU; None where nothing stood against it.
        cut_share: of the gradient over this window and the one before, what lies before the cut.
        cut_unknown: why that cannot be measured of a sequence whose state comes in without a graph;
            None where nothing stands against it.
        channels: of a scan, how far back each channel holds a gradient.
        whole: ``total`` of all states of the recurrence together, as of h and c of an LSTM; None
            where there is but one.
        unread: whether the loss reaches the other direction of the module, and this one nowhere.
        mismatch: of a scan, where its states are known not to be what its recurrence makes.
    """

    module: str
    call: int
    kind: str
    layer: int
    direction: str
    state: str
    timesteps: int
    batch_size: int
    sequences: tuple[int, ...]
    lengths: tuple[int, ...]
    total: Floats
    direct: Floats | None
    curves: Floats
    inexact_reason: str | None = None
    layers: int = 1
    truncated: bool = False
    primary: bool = True
    step: int | None = None
    ends: Ends = field(default_factory=Ends)
    gate_gradient: float | None = None
    saturation: Saturation | None = None
    fused: bool = True
    handed_over: bool = False
    unjoined: bool = False
    with_gradient: int | None = None
    batch_first: bool | None = None
    cell_cut: bool = False
    by_timestep: str | None = None
    cut_share: float | None = None
    cut_unknown: str | None = None
    channels: Channels | None = None
    mismatch: Mismatch | None = None
    unread: bool = False
    whole: Floats | None = None
    _lagged: list[Floats] = field(default_factory=list[Floats], init=False, repr=False, compare=False)

    @property
    def place(self) -> tuple[str, int, str]:
        """Module, layer and direction."""
        return self.module, self.layer, self.direction

    @property
    def real_timesteps(self) -> int:
        """Of the longest sequence, without padding that the loss does
        not ask the gradient to cross.
        """
        return self.ends.timesteps(self.lengths, self.timesteps)

    @property
    def due_timesteps(self) -> int:
        """Those of them at or before the last one that the loss reaches: behind it none is due a
        gradient.
        """
        reached, of = self.due()
        return max(self.real_timesteps - (of - reached), 1)

    def starved(self) -> int:
        """How many timesteps, from the sequence's far end on, get under 1 % of the largest total
        gradient, of all states together; median over sequences.

        The far end is where a direction's own first step is. Timesteps past the last one that the
        loss reaches are no part of it: no gradient is due there. Nor is padding: nothing is to be
        learned from it.
        """
        counts: list[int] = []
        totals = self.total if self.whole is None else self.whole
        for j, (row, length) in enumerate(zip(totals, self.lengths, strict=True)):
            norms = row[:length] if self.direction == "forward" else row[:length][::-1]
            first, last = self.ends.bounds(j, length)
            largest = norms[first:last].max(initial=0.0)
            if 0 < largest < np.inf:
                enough = np.flatnonzero(norms[first:last] >= STARVING_SHARE * largest)
                counts.append(int(enough[0]))
        return int(median(counts)) if counts else 0

    def scaled(self, factor: float) -> Profile:
        """The profile of a loss ``factor`` times as large. Ratios stay as they are."""
        if factor == 1:
            return self
        direct = None if self.direct is None else self.direct * factor
        whole = None if self.whole is None else self.whole * factor
        return replace(self, total=self.total * factor, direct=direct, whole=whole)

    @property
    def exact(self) -> bool:
        """Whether the figures are those of the training step itself, to rounding."""
        return self.inexact_reason is None

    def lagged(self) -> Floats:
        """r_k: the median over the sequences and anchors that reach lag k ``(lag,)``. Empty
        if no loss reached the output.
        """
        if not self._lagged:  # record, detectors and metrics all ask for it, and a median is not cheap
            self._lagged.append(_median(self.curves))
        return self._lagged[0]

    def total_median(self) -> Floats:
        """Median over the sequences that reach a timestep ``(time,)``; those that get
        no gradient at all are left out.
        """
        return _median(self._finite_or_inf(self.total)[self._reached()])

    def total_max(self) -> Floats:
        """Maximum over the sequences that reach a timestep ``(time,)``."""
        return _reduce(partial(np.nanmax, axis=0), self._finite_or_inf(self.total))

    def direct_median(self) -> Floats | None:
        """Median of the direct gradient over the sequences that reach a timestep ``(time,)``."""
        return None if self.direct is None else _median(self._finite_or_inf(self.direct)[self._reached()])

    def _reached(self) -> npt.NDArray[np.bool_]:
        """Which of the measured sequences get a gradient at any
        timestep; all of them, where none does.
        """
        reached = np.any(np.nan_to_num(self._finite_or_inf(self.total)), axis=1, keepdims=True)[:, 0]
        return reached if reached.any() else ~reached

    def due(self) -> tuple[int, int]:
        """``(reached, timesteps)``, medians over the sequences that get a gradient: how many
        timesteps, counted from the direction's own first one, lie at or before the last one that
        gets a gradient; and how many there are. Past it nothing has a loss. Padding is left out of
        both, unless the gradient reaches nothing else.
        """
        rows = zip(self._finite_or_inf(self.total), self.lengths, strict=True)
        pairs = [pair for j, (row, length) in enumerate(rows) if (pair := self._due(j, row[:length])) is not None]
        return (int(np.median([due for due, _ in pairs])), int(np.median([n for _, n in pairs]))) if pairs else (0, 0)

    def _due(self, sequence: int, row: Floats) -> tuple[int, int] | None:
        reached = np.flatnonzero(row if self.direction == "forward" else row[::-1])
        if not len(reached):
            return None
        (first, last), until = self.ends.bounds(sequence, len(row)), int(reached[-1]) + 1
        return (min(until, last) - first, last - first) if until > first else (until, len(row))

    def _finite_or_inf(self, norms: Floats) -> Floats:
        """NaN within a sequence counts as larger than anything, so that only what
        lies past its end is left out.
        """
        within = np.arange(self.timesteps)[None, :] < np.asarray(self.lengths)[:, None]
        return np.where(within & np.isnan(norms), np.inf, norms)

    def _past(self) -> str | None:
        """What is not as it should be with the state that came in."""
        reasons = {"left out": self.unjoined, "handed over": self.handed_over, "cut off": self.truncated}
        return next((reason for reason, holds in reasons.items() if holds), None)

    def to_record(self, *, keep_sequences: bool = False) -> ProfileFields:
        """The profile as a record of the run log, without the fields
        that place it in the training.
        """
        lagged = self.lagged()
        horizon = gradient_horizon(lagged)
        due, of = self.due()
        at, lag_at = evenly(self.timesteps), logarithmically(len(lagged))
        record: ProfileFields = {
            "call": self.call,
            "module": self.module,
            "kind": self.kind,
            "layer": self.layer,
            "direction": self.direction,
            "state": self.state,
            "primary": self.primary,
            "timesteps": self.timesteps,
            "sequences": len(self.sequences),
            "batch_size": self.batch_size,
            "exact": self.exact,
            "inexact_reason": self.inexact_reason,
            "by_timestep": self.by_timestep,
            "total": _pick(self.total_median(), at),
            "total_max": _pick(self.total_max(), at),
            "direct": None if (direct := self.direct_median()) is None else _pick(direct, at),
            "lagged": _pick(lagged, lag_at),
            "at": None if at is None else at.tolist(),
            "lag_at": None if lag_at is None else lag_at.tolist(),
            "horizon": horizon.lag,
            "horizon_censored": horizon.censored,
            "growth_rate": growth_rate(lagged),
            "real_timesteps": self.real_timesteps,
            "padded": self.ends.padded,
            "starved": self.starved(),
            "gate_gradient": self.gate_gradient,
            "reached": due,
            "reachable": of,
            "with_gradient": self.with_gradient,
            "batch_first": self.batch_first,
            "past": self._past(),
            "cut_share": self.cut_share,
            "cut_unknown": self.cut_unknown,
            **record_of(self.channels),
        }
        if keep_sequences:
            record["total_by_sequence"] = [
                row[:length].tolist() for row, length in zip(self.total, self.lengths, strict=True)
            ]
        return record


def _pick(values: Floats, at: npt.NDArray[np.int64] | None) -> list[float]:
    return (values if at is None else values[at]).tolist()


def _reduce(function: Any, rows: Floats) -> Floats:
    """Reduce over rows, leaving out what is NaN in a row because it lies past its end."""
    if not rows.size:
        return np.zeros(rows.shape[-1] if len(rows) else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column where every gradient is NaN stays NaN
        return function(rows)


def _median(rows: Floats) -> Floats:
    return _reduce(nan_median, rows)


def nan_median(rows: Floats) -> Floats:
    """Over the first axis, what ``numpy.nanmedian`` gives, which takes many times as long."""
    ordered = np.sort(rows, axis=0)  # what is NaN comes last
    count = np.count_nonzero(~np.isnan(rows), axis=0, keepdims=True)
    low, high = (np.take_along_axis(ordered, at, 0)[0] for at in (np.maximum(count - 1, 0) // 2, count // 2))
    return np.where(count[0] % 2 == 1, low, (low + high) / 2)
