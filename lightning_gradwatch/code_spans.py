"""Code within a sentence: what stands between backticks, as messages and remedies have it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

_CODE = re.compile("`([^`\n]+)`")


def spans(text: str) -> Iterator[tuple[str, bool]]:
    """The parts of a text in order, each with whether it is code; without the backticks."""
    for place, part in enumerate(_CODE.split(text)):
        if part:
            yield part, bool(place % 2)


def to_html(text: str) -> str:
    """A text escaped, its code as ``<code>``."""
    return "".join(f"<code>{escape(part)}</code>" if code else escape(part) for part, code in spans(text))
