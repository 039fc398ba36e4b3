"""What arguments must be. Every error has one form: the argument, the rule,
what was found, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real

_MOST_DIGITS = 18  # of a whole number in a text; Python refuses to read one of more than 4,300


def check(holds: bool, argument: str, rule: str, value: object, remedy: str, owner: object = None) -> None:
    """Raise unless the rule holds.

    Args:
        owner: an object whose class is named in front, where an argument's
            name alone could be anybody's.

    Raises:
        ValueError: it does not.
    """
    if not holds:
        whose = "" if owner is None else f"{type(owner).__name__}: "
        raise ValueError(f"{whose}`{argument}` must be {rule}; found {value!r}. {remedy}")


def whole(argument: str, value: object, remedy: str, *, least: int = 1, owner: object = None) -> int:
    """A count: a whole number of at least ``least``, NumPy's included; True and False are none.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        check(False, argument, f"a whole number ≥ {least}", value, remedy, owner)
        raise AssertionError  # for the type checker
    check(int(value) >= least, argument, f"≥ {least}", int(value), remedy, owner)
    return int(value)


def number(
    argument: str, value: object, holds: Callable[[float], bool], rule: str, remedy: str, *, owner: object = None
) -> float:
    """A real number for which the rule holds; True, False and texts are none.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        check(False, argument, f"a number, {rule}", value, remedy, owner)
        raise AssertionError  # for the type checker
    read = float(value)
    check(holds(read), argument, rule, value if isinstance(value, int) else read, remedy, owner)
    return read


def positive(argument: str, value: object, remedy: str, *, owner: object = None) -> float:
    """A real number that is finite and greater than zero.

    Raises:
        ValueError: it is not.
    """
    return number(argument, value, lambda real: 0 < real < math.inf, "finite and > 0", remedy, owner=owner)


def one_of(argument: str, value: object, allowed: Collection[str], remedy: str, *, owner: object = None) -> None:
    """Raise unless ``value`` is one of the allowed words.

    Raises:
        ValueError: it is not.
    """
    names = ", ".join(f'"{name}"' for name in allowed)
    check(isinstance(value, str) and value in allowed, argument, f"one of {names}", value, remedy, owner)


def whole_text(text: str, *, least: int = 1) -> int | None:
    """The count that a text from the command line or the environment
    says; None where it says none.
    """
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        return None
    return int(text) if int(text) >= least else None
