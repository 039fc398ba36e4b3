"""The fields of a profile's record: what :meth:`Profile.to_record` makes, and a run log holds
beside when it was.
"""

from __future__ import annotations

from typing import Annotated, TypedDict

Count = Annotated[int, "≥ 0"]
"""A whole number that is not negative, as the format has it."""


class _Required(TypedDict):
    module: str
    layer: Count
    direction: str
    timesteps: Count
    total: list[float]


class _Measured(_Required, total=False):
    # What the base holds must be there in any record; the rest may be missing or null.
    call: int
    kind: str
    state: str
    primary: bool
    sequences: Count
    batch_size: Count
    exact: bool
    inexact_reason: str | None
    by_timestep: str | None
    total_max: list[float]
    direct: list[float] | None
    lagged: list[float]
    at: list[Count] | None
    lag_at: list[Count] | None
    horizon: Count | None
    horizon_censored: bool
    growth_rate: float | None
    real_timesteps: Count
    padded: Count
    starved: Count
    gate_gradient: float | None
    reached: Count
    reachable: Count
    with_gradient: Count | None
    batch_first: bool | None
    past: str | None
    cut_share: float | None
    cut_unknown: str | None
    total_by_sequence: list[list[float]]


class ChannelFields(TypedDict, total=False):
    """Of a scan; null elsewhere."""

    channels: Count | None
    channel_horizons: list[Count] | None
    channels_censored: Count | None


class ProfileFields(_Measured, ChannelFields):
    """One recurrent call, layer, direction and state. Norms are L2 over the hidden dimension."""
