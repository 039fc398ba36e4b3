"""Text on its way to a terminal: whatever came from a file, a model
or an error must not steer it.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from typing import TextIO


def plain(text: str) -> str:
    """Without control characters, marks that turn the reading direction, and lone surrogates.

    Each is shown as Python writes it, such as ``\\x1b``; line breaks and other spaces become a
    space. What is plain stays as it is.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def plain_lines(text: str) -> str:
    """The same of a text of several lines."""
    return "\n".join(map(plain, text.split("\n")))


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines on standard output, or to ``file``."""
    for line in lines:
        print(plain(line), file=file or sys.stdout)


def warn(message: str, stacklevel: int = 1) -> None:
    """Warn, as ``warnings.warn`` does."""
    warnings.warn(plain(message), stacklevel=stacklevel + 1)


def count_of(number: int, noun: str) -> str:
    """``1 timestep``, ``2,000 timesteps``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown_share(share: float) -> str:
    """A share in per cent: ``4.1 %``."""
    return "less than 0.1 %" if share < 0.001 else f"{100 * share:.2g} %"


def command(*words: str) -> str:
    """A line to be pasted into a shell, each word quoted as it needs."""
    return " ".join(map(_quoted, words))


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode("ascii")


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    shown = "".join(letter if letter.isprintable() and letter not in "\\'" else _bytes(letter) for letter in word)
    return f"$'{shown}'"


def _bytes(letter: str) -> str:
    return "".join(
        f"\\x{byte:02x}"
        for byte in letter.encode("utf-8", "surrogateescape" if "\udc80" <= letter <= "\udcff" else "replace")
    )
