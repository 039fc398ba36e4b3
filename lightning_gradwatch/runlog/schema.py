"""Names and shapes of the run log: append-only JSON Lines, one record a line, a header line first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

FORMAT_VERSION = "1.0"
"""Readers accept every minor of their own major and refuse a newer major."""

RUN_FILE = "run.json"
PROFILES_FILE = "profiles.jsonl"
EVENTS_FILE = "events.jsonl"
STEPS_FILE = "steps.jsonl"

HEADER_KEY = "gradwatch_header"
"""A line that holds this key opens a file, or marks where a resumed run goes on (``resumed_at_step``)."""


def events_file(rank: int) -> str:
    """The events file of a rank: ``events.jsonl`` on rank 0, ``events.rank<N>.jsonl`` elsewhere."""
    return EVENTS_FILE if rank == 0 else f"events.rank{rank}.jsonl"


class ProfileRecord(TypedDict, total=False):
    """One recurrent call, layer, direction and state. Norms are L2 over the hidden dimension."""

    step: int
    epoch: int
    batch_idx: int
    micro_batch: int
    loss: float | None
    call: int
    module: str
    kind: str
    layer: int
    direction: str
    state: str
    primary: bool
    timesteps: int
    sequences: int
    batch_size: int
    exact: bool
    inexact_reason: str | None
    total: list[float]
    total_max: list[float]
    direct: list[float]
    lagged: list[float]
    at: list[int] | None
    lag_at: list[int] | None
    horizon: int | None
    horizon_censored: bool
    growth_rate: float | None
    real_timesteps: int
    padded: int
    starved: int
    gate_gradient: float | None
    reached: int
    reachable: int
    with_gradient: int | None
    batch_first: bool | None
    past: str | None
    total_by_sequence: list[list[float]]


class StepRecord(TypedDict, total=False):
    """One optimizer step as AdaptiveClip saw it."""

    step: int
    optimizer: int
    grad_norm: float
    clip_threshold: float | None
    clip_coefficient: float
    clipped_norm: float
    loss: float | None
    skipped: bool


def is_primary(record: Mapping[str, Any]) -> bool:
    """Whether a record's state stands for its recurrence; in a run log that does not say, it is h."""
    return bool(record.get("primary", (record.get("state") or "h") == "h"))


def to_json(value: Any) -> Any:
    """``value`` as strict JSON: numbers that JSON lacks become ``"nan"``, ``"inf"`` and ``"-inf"``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def from_json(value: Any) -> Any:
    """The inverse of :func:`to_json` for numbers and lists of numbers."""
    if isinstance(value, str):
        return _WORDS.get(value, value)
    if isinstance(value, list):
        return [from_json(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
