"""What several arguments must be."""

from __future__ import annotations

from numbers import Integral


def at_least_one(name: str, value: object, remedy: str) -> None:
    """Raise one clear error unless an argument is a whole number of 1 or more."""
    if not isinstance(value, Integral):
        raise ValueError(f"`{name}` must be a whole number ≥ 1; found {value!r}. {remedy}")
    if int(value) < 1:
        raise ValueError(f"`{name}` must be ≥ 1; found {value}. {remedy}")
