"""The page of each event kind: the same in the documentation, in the terminal and in the report,
and there without a network."""

from __future__ import annotations

import re
from importlib.resources import files

from lightning_gradwatch.events import EventKind

TOY = "toy"
"""The page with the model that all examples break."""

_CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def explanation(kind: EventKind) -> str:
    """The page in Markdown: severity, what the event says and advises, then the rest. Links and
    pictures lead into the documentation."""
    says = re.sub(r"\{(\w+)[^}]*\}", r"*\1*", kind.message.replace("{detail}", ""))
    head = f"# {kind}\n\nSeverity: **{kind.severity}**.\n\n> {says}\n>\n> {kind.remedy}\n"
    return f"{head}\n{body(kind.page)}"


def body(page: str) -> str:
    """What stands in the file of a page.

    Args:
        page: its name, :data:`TOY` or that of a kind.
    """
    return (files("lightning_gradwatch.report") / "explanations" / f"{page}.md").read_text("utf-8")


def example(kind: EventKind) -> str:
    """A script that provokes an event of this kind: the toy model, and the fault that is planted in
    it."""
    return "\n\n".join("".join(_CODE.findall(body(page))).rstrip() for page in (TOY, kind.page)) + "\n"


def without_links(markdown: str) -> str:
    """For where the documentation is not at hand: links as their text, pictures left out."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\.[^)]+\)", r"\1", re.sub(r"^!\[.*\n", "", markdown, flags=re.MULTILINE))


def kind_named(text: str) -> EventKind | None:
    """The kind that a user means: ``NOT_OBSERVED``, ``not-observed``, ``Not observed``; None if
    there is none."""
    name = re.sub(r"[\s-]+", "_", text.strip()).upper()
    return EventKind(name) if name in EventKind.__members__ else None
