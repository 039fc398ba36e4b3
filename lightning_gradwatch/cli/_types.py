"""What arguments of the command line are: texts, of which each must say what its option means."""

from __future__ import annotations

import argparse

from lightning_gradwatch.arguments import whole_text

_MOST_SECONDS = 1e6


def count(text: str) -> int:
    """A whole number of 1 or more."""
    number = whole_text(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"must be a whole number ≥ 1; found {text!r}")
    return number


def seconds(text: str) -> float:
    """A time that one can wait for."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be a number of seconds > 0; found {text!r}")
    return number


def share(text: str) -> float:
    """A share of something that is not all of it."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 up to, but not including, 1; found {text!r}")
    return number
