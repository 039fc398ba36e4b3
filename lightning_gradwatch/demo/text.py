"""Real text, by character: the files that the user names, or the sources of Python's standard
library."""

from __future__ import annotations

import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_gradwatch.demo.error import DemoError

LIMIT = 2_000_000
"""Characters: more is not read, since the demo could not learn from it in its time."""

MOST_CHARACTERS = 128
"""Rarer characters share one number."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def read_text(files: Sequence[str | Path] = (), *, limit: int = LIMIT) -> str:
    """The text of ``files`` one after another, or of the standard library where none is named.

    Args:
        files: UTF-8.
        limit: characters after which nothing more is read.

    Raises:
        DemoError: a file cannot be read or is not UTF-8.
    """
    parts: list[str] = []
    length = 0
    for path in files or standard_library():
        if length >= limit:
            break
        parts.append(_read(Path(path), limit - length) if files else Path(path).read_text("utf-8", errors="replace"))
        length += len(parts[-1])
    return "".join(parts)[:limit]


def standard_library() -> list[Path]:
    """The modules at the top of Python's own standard library, by name.

    Raises:
        DemoError: this Python comes without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"), key=lambda path: path.name)
    if not files:
        raise DemoError(
            f"This Python has no sources of its standard library in {str(folder)!r}. Name a text: --text FILE"
        )
    return files


def _read(path: Path, limit: int) -> str:
    """At most ``limit`` characters of a file that the user named."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(limit)
    except UnicodeDecodeError as error:
        raise DemoError(
            f"A text must be UTF-8; found {error.object[error.start : error.start + 1]!r} in {str(path)!r}. "
            "Convert it (iconv -t utf-8), or name another file."
        ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DemoError(f"A text must be a file that can be read; found {str(path)!r} ({reason}).") from error


class Characters:
    """Characters and their numbers.

    Args:
        text: whose most frequent characters get a number of their own, most frequent first; 0
            stands for all others.
    """

    def __init__(self, text: str) -> None:
        # Counter keeps ties in the order in which they were met, so that the same text gives the
        # same numbers.
        common = (character for character, _ in Counter(text).most_common(MOST_CHARACTERS) if character != UNKNOWN)
        self.characters = (UNKNOWN, *common)
        self._numbers = {character: number for number, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Numbers ``(character,)``, int64."""
        return torch.tensor([self._numbers.get(character, 0) for character in text], dtype=torch.int64)

    def decode(self, numbers: Tensor) -> str:
        """The inverse, but for the characters without a number of their own."""
        return "".join(self.characters[number] for number in numbers.tolist())


def unigram_perplexity(numbers: Tensor, count: int) -> float:
    """The perplexity of always predicting the frequencies in ``numbers`` ``(character,)``: what
    knowing no context gives."""
    shares = torch.bincount(numbers, minlength=count).double() / len(numbers)
    return float(torch.special.entr(shares).sum().exp())
