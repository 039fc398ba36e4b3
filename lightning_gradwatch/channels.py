"""How far back each channel of a diagonal recurrence holds a gradient, and what else only such a
recurrence has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.profile_record import ChannelFields

QUANTILES = 256
"""Of a record's channels, sorted; a page shows no more."""


@dataclass(frozen=True, slots=True)
class Channels:
    """The horizon of each channel: the first lag at which the product of its decays falls under
    1 %, from the last timestep that the loss reaches. Their distribution is the memory.

    Args:
        horizons: timesteps, ascending; of what outlives the sequence the longest lag seen.
        censored: how many do; they are the last ones.
        size: the median over all decays of |a|, between one timestep and the next.
    """

    horizons: npt.NDArray[np.int64]
    censored: int
    size: float


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first timestep at which the states of a scan are not what its recurrence makes of its
    decay and inputs.

    Args:
        timestep, sequence: as the caller counts them.
        error: ‖h_t − (a_t h_{t−1} + b_t)‖ over the sum of these three's norms, dimensionless.
        tolerance: what rounding explains.
    """

    timestep: int
    sequence: int
    error: float
    tolerance: float


def record_of(channels: Channels | None) -> ChannelFields:
    """The fields of a profile's record, null but for a scan; more than 256 horizons are thinned
    evenly.
    """
    if channels is None:
        return {"channels": None, "channel_horizons": None, "channels_censored": None}
    count = len(channels.horizons)
    at = np.linspace(0, count - 1, min(count, QUANTILES)).round().astype(np.int64)
    horizons = channels.horizons[at].tolist()
    return {"channels": count, "channel_horizons": horizons, "channels_censored": channels.censored}
