"""Text out of a run log, made fit for a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """Without control characters: a run log must not steer the terminal. Lone surrogates cannot be printed."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown.encode("utf-8", "replace").decode("utf-8")
