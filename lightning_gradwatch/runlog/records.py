"""What a record must look like: one table per file, by which a reader tells a record from a damaged line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from lightning_gradwatch.runlog.schema import from_json

Record = dict[str, Any]


class MalformedError(ValueError):
    """A line is JSON, but no record of its file."""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return sys.intern(value) if len(value) < 100 else value  # a million events share a handful of names
    raise MalformedError


def _shared(value: Any) -> str:
    """A text that many records have in common, kept once however long it is."""
    return sys.intern(_text(value))


def _integer(value: Any) -> int:
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    raise MalformedError


def _count(value: Any) -> int:
    if type(value) is int and 0 <= value < 2**63:
        return value
    raise MalformedError


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise MalformedError


def _number(value: Any) -> float:
    value = from_json(value)
    if type(value) is float:
        return value
    return float(_integer(value))


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, list):
        raise MalformedError
    items = cast("list[Any]", value)
    return items if set(map(type, items)) <= {float} else [_number(item) for item in items]


def _counts(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise MalformedError
    return [_count(item) for item in cast("list[Any]", value)]


def _rows(value: Any) -> list[list[float]]:
    if not isinstance(value, list):
        raise MalformedError
    return [_numbers(item) for item in cast("list[Any]", value)]


Check = Callable[[Any], Any]
Fields = Mapping[str, Check]

# A field in the first table must be there; one in the second may be missing or null, and is then None.
PROFILE: tuple[Fields, Fields] = (
    {"step": _count, "module": _text, "layer": _count, "direction": _text, "timesteps": _count, "total": _numbers},
    {
        "epoch": _integer,
        "batch_idx": _integer,
        "micro_batch": _integer,
        "loss": _number,
        "call": _integer,
        "kind": _text,
        "state": _text,
        "sequences": _count,
        "batch_size": _count,
        "exact": _flag,
        "inexact_reason": _text,
        "total_max": _numbers,
        "direct": _numbers,
        "lagged": _numbers,
        "at": _counts,
        "lag_at": _counts,
        "horizon": _count,
        "horizon_censored": _flag,
        "growth_rate": _number,
        "real_timesteps": _count,
        "padded": _count,
        "starved": _count,
        "gate_gradient": _number,
        "reached": _count,
        "reachable": _count,
        "with_gradient": _count,
        "batch_first": _flag,
        "total_by_sequence": _rows,
    },
)
EVENT: tuple[Fields, Fields] = (
    {"kind": _text, "step": _count},
    {
        "severity": _text,
        "epoch": _integer,
        "batch_idx": _integer,
        "rank": _integer,
        "module": _text,
        "layer": _integer,
        "direction": _text,
        "state": _text,
        "timestep": _integer,
        "sequence": _integer,
        "parameter": _text,
        "value": _number,
        "threshold": _number,
        "action": _text,
        "message": _text,
        "remedy": _shared,
    },
)
STEP: tuple[Fields, Fields] = (
    {"step": _count},
    {
        "optimizer": _integer,
        "grad_norm": _number,
        "clip_threshold": _number,
        "clip_coefficient": _number,
        "clipped_norm": _number,
        "loss": _number,
        "skipped": _flag,
    },
)


def checked(raw: Mapping[str, Any], fields: tuple[Fields, Fields]) -> Record:
    """The record that ``raw`` holds, with every known field there and of its type; unknown fields are kept as they are.

    Raises:
        MalformedError: a field is missing, or of another type than the format says.
    """
    required, optional = fields
    record: Record = {}
    for name, check in required.items():
        record[name] = check(raw.get(name))
    for name, check in optional.items():
        value = raw.get(name)
        record[name] = None if value is None else check(value)
    for name in raw.keys() - record.keys():
        record[name] = raw[name]
    if fields is PROFILE:
        _check_lengths(record)
    return record


def _check_lengths(record: Record) -> None:
    """Lists that are drawn against one another must be equally long."""
    for names in (("total", "direct", "total_max", "at"), ("lagged", "lag_at")):
        lengths = {len(record[name]) for name in names if record[name] is not None}
        if len(lengths) > 1:
            raise MalformedError
