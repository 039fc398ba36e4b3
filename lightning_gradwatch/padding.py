"""Which timesteps of a profile look like padding, and which of them the
loss makes the gradient cross.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.thresholds import PADDING_SHARE, PADDING_TIMESTEPS

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ends:
    """Runs of equal inputs at the ends of the sequences measured, in a direction's own order: it
    begins at ``far`` and ends at ``near``, which is where a loss on its last state sits.

    Args:
        far, near: timesteps of each sequence; all 0 where too few sequences have
            such a run, or too short ones.
        crossed: the loss reaches this direction within the near run alone, so
            that the gradient must cross it.
        skipped: the loss reaches nothing within the near run.
        alike: all near runs are equally long.
    """

    far: tuple[int, ...] = ()
    near: tuple[int, ...] = ()
    crossed: bool = False
    skipped: bool = False
    alike: bool = False

    @property
    def padded(self) -> int:
        """Timesteps of equal inputs that the gradient has to cross first, median over the
        sequences that have any; 0 for none.
        """
        return _middle(self.near) if self.crossed else 0

    def bounds(self, row: int, length: int) -> tuple[int, int]:
        """Where in own order the timesteps of a sequence lie that matter to the loss."""
        first = self.far[row] if self.far else 0
        last = length - self.near[row] if self.near and self.skipped else length
        return min(first, last), last

    def timesteps(self, lengths: tuple[int, ...], longest: int) -> int:
        """Of the longest sequence measured, those that matter;
        ``longest`` where nothing is padded.
        """
        if not any(self.far) and not (self.skipped and any(self.near)):
            return longest
        return max(
            (last - first for first, last in (self.bounds(j, n) for j, n in enumerate(lengths))), default=longest
        )


def find_ends(
    leading: tuple[int, ...],
    trailing: tuple[int, ...],
    *,
    reverse: bool,
    lengths: tuple[int, ...],
    sent: Floats,
    alone: bool | None = None,
) -> Ends:
    """What the runs of equal inputs mean to one direction.

    Args:
        leading, trailing: of each sequence, as the caller counts time.
        sent: norms ``(sequence, time)`` of what the loss sends to each timestep.
        alone: whether the loss reaches the last state alone, where ``sent`` cannot tell because it
            holds what flows through time too.
    """
    far, near = (_if_common(runs, lengths) for runs in ((trailing, leading) if reverse else (leading, trailing)))
    if not any(near):
        return Ends(far, near)
    inside, outside = _split(near, reverse, lengths, sent)
    skipped = not any(inside)
    alone = not any(outside) if alone is None else alone
    runs = {run for run in near if run}
    return Ends(far, near, alone and not skipped, skipped, len(runs) == 1 and all(near))


def _split(
    near: tuple[int, ...], reverse: bool, lengths: tuple[int, ...], norms: Floats
) -> tuple[list[bool], list[bool]]:
    """Of each sequence with a near run, whether anything arrives within it, and
    whether anything does outside of it.
    """
    inside: list[bool] = []
    outside: list[bool] = []
    for row, run, length in zip(norms, near, lengths, strict=True):
        if run:
            in_order = row[:length][::-1] if reverse else row[:length]
            inside.append(bool((in_order[length - run :] != 0).any()))
            outside.append(bool((in_order[: length - run] != 0).any()))
    return inside, outside


def _if_common(runs: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The runs, if more than half of the sequences have one and it is long enough."""
    having = [run for run in runs if run]
    enough = max(PADDING_TIMESTEPS, PADDING_SHARE * max(lengths, default=0))
    return runs if 2 * len(having) > len(runs) and median(having) >= enough else ()


def _middle(runs: tuple[int, ...]) -> int:
    having = [run for run in runs if run]
    return int(median(having)) if having else 0
