"""What no terminal must get from a file or a model."""

from __future__ import annotations

import unicodedata

STEERING_NAMES = (
    "\x1b]0;owned\x07\x1b[31m",
    "bell\a",
    "\x9b2J\x90q\x9c",
    "back\b\b\bspace\rreturn",
    "del\x7f",
    "left\u202eright\u2066",
    "lines\n\u2028\u2029\x85\x0b",
    "zero\u200bwidth\ufeff",
)
"""Names of modules, files and models that would: by ESC, BEL, C1, CR, DEL, marks of direction, breaks."""


def steers(letter: str) -> bool:
    """Whether it is a control character, a mark of format or direction, half of a pair, or a separator of lines."""
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def steering(shown: str) -> set[str]:
    """What of a text would steer a terminal, but for the ends of its lines."""
    return {letter for letter in shown if steers(letter) and letter != "\n"}
