"""Names and shapes of the run log: append-only JSON Lines, one
record a line, a header line first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from lightning_gradwatch.profile_record import Count, ProfileFields

FORMAT_VERSION = "1.0"
"""Readers accept every minor of their own major and refuse a newer major."""

RUN_FILE = "run.json"
PROFILES_FILE = "profiles.jsonl"
EVENTS_FILE = "events.jsonl"
STEPS_FILE = "steps.jsonl"

HEADER_KEY = "gradwatch_header"
"""A line that holds this key opens a file, or marks where a resumed run
goes on (``resumed_at_step``).
"""


def events_file(rank: int) -> str:
    """The events file of a rank: ``events.jsonl`` on rank 0, ``events.rank<N>.jsonl`` elsewhere."""
    return EVENTS_FILE if rank == 0 else f"events.rank{rank}.jsonl"


Repeated = Annotated[str, "many records share it"]
"""A text that a reader keeps once, however long it is."""


class _Taken(TypedDict):
    step: Count


class _Sampled(_Taken, total=False):
    epoch: int | None
    batch_idx: int | None
    micro_batch: int
    loss: float | None


class ProfileRecord(_Sampled, ProfileFields):
    """A profile, with when it was.

    Here as below, what the base of all holds must be there in any record; the rest may be missing
    or null.
    """


class _EventRequired(TypedDict):
    kind: str
    step: Count


class EventRecord(_EventRequired, total=False):
    """One anomaly, or the end of an episode of one. What does not apply is null."""

    severity: str
    epoch: int | None
    batch_idx: int | None
    rank: int
    module: str | None
    layer: int | None
    direction: str | None
    state: str | None
    timestep: int | None
    sequence: int | None
    parameter: str | None
    value: float | None
    threshold: float | None
    action: str | None
    message: str
    remedy: Repeated


class _StepRequired(TypedDict):
    step: Count


class StepRecord(_StepRequired, total=False):
    """One optimizer step as AdaptiveClip saw it."""

    optimizer: int
    grad_norm: float
    clip_threshold: float | None
    clip_coefficient: float
    clipped_norm: float
    loss: float | None
    skipped: bool


class _ClippingRequired(TypedDict):
    optimizer: Count
    verdict: str


class ClippingRecord(_ClippingRequired, total=False):
    """What became of one optimizer's gradients between the backward pass and the step, over a fit:
    the fields of :class:`ClippingSummary`.
    """

    sentence: str
    remedy: str
    by: list[str]
    bound: float | None
    samples: Count
    steps: Count
    first_step: Count
    share: float | None
    median_coefficient: float | None
    norm_percentiles: dict[str, float] | None
    clipped_steps: Count | None


def is_primary(record: Mapping[str, Any]) -> bool:
    """Whether a record's state stands for its recurrence; in a run
    log that does not say, it is h.
    """
    primary = record.get("primary")
    return (record.get("state") or "h") == "h" if primary is None else bool(primary)


def to_json(value: Any) -> Any:
    """``value`` as strict JSON: numbers that JSON lacks become
    ``"nan"``, ``"inf"`` and ``"-inf"``.
    """
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
