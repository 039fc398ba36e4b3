"""Tells a record from a damaged line: the checks that the types of
its fields in the schema ask for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast, get_args, get_type_hints

from lightning_gradwatch.profile_record import Count
from lightning_gradwatch.runlog.schema import (
    ClippingRecord,
    EventRecord,
    ProfileRecord,
    Repeated,
    StepRecord,
    from_json,
)

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


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise MalformedError
    return [_text(item) for item in cast("list[Any]", value)]


def _named_numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise MalformedError
    return {_text(name): _number(item) for name, item in cast("dict[Any, Any]", value).items()}


Check = Callable[[Any], Any]
Fields = Mapping[str, Check]

_CHECKS: dict[Any, Check] = {
    int: _integer,
    float: _number,
    bool: _flag,
    str: _text,
    Count: _count,
    Repeated: _shared,
    list[float]: _numbers,
    list[Count]: _counts,
    list[list[float]]: _rows,
    list[str]: _texts,
    dict[str, float]: _named_numbers,
}


def _checks_of(record: type[Any]) -> tuple[Fields, Fields]:
    """Field → check: of those that must be there, and of those that may be
    missing or null, and are then None.
    """
    checks = {name: _check_of(hint) for name, hint in get_type_hints(record, include_extras=True).items()}
    required: frozenset[str] = record.__required_keys__
    return (
        {name: check for name, check in checks.items() if name in required},
        {name: check for name, check in checks.items() if name not in required},
    )


def _check_of(hint: Any) -> Check:
    """The check that a type asks for, whether or not it has a ``| None``."""
    return _CHECKS[next(kind for kind in (hint, *get_args(hint)) if kind in _CHECKS)]


PROFILE = _checks_of(ProfileRecord)
EVENT = _checks_of(EventRecord)
STEP = _checks_of(StepRecord)
CLIPPING = _checks_of(ClippingRecord)


def checked(raw: Mapping[str, Any], fields: tuple[Fields, Fields]) -> Record:
    """The record that ``raw`` holds, with every known field there and of its type;
    unknown fields are kept as they are.

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


def entries(value: Any, fields: tuple[Fields, Fields]) -> list[Record]:
    """The records in a list of run.json; what is none is left out."""
    checked_entries: list[Record] = []
    for item in cast("list[Any]", value) if isinstance(value, list) else ():
        if isinstance(item, dict):
            with suppress(MalformedError):
                checked_entries.append(checked(cast("Record", item), fields))
    return checked_entries


def _check_lengths(record: Record) -> None:
    """Lists that are drawn against one another must be equally long."""
    for names in (("total", "direct", "total_max", "at"), ("lagged", "lag_at")):
        lengths = {len(record[name]) for name in names if record[name] is not None}
        if len(lengths) > 1:
            raise MalformedError
