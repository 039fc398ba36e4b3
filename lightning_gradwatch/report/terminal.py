"""Tables and lines for a terminal: by rich where it is installed, as plain text elsewhere. All that
goes this way is made fit for it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

from lightning_gradwatch.code_spans import spans
from lightning_gradwatch.plain import plain, plain_lines, say
from lightning_gradwatch.report.extra import installed, require

Part = str | tuple[str, str]
"""Text, or text and its style."""

_CALM = {"markdown.h1": "bold", "markdown.h2": "bold", "markdown.block_quote": "", "markdown.code": "bold"}
"""A page is to be read; rich's own theme would make an alarm of it."""

_WIDEST = 32  # characters of a plain table's column, but for the last
_LEAST = 24  # of the last
_PAGE = 100  # of a line that is to be read


@dataclass(frozen=True)
class Column:
    """Of a table; the last one takes the room that there is."""

    heading: str
    right: bool = False
    whole: bool = False


class Terminal(Protocol):
    """What can be shown."""

    def line(self, *parts: Part) -> None:
        """One line, broken where it is too long."""
        ...

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Part]]) -> None:
        """A table."""
        ...

    def markdown(self, text: str) -> None:
        """A page."""
        ...


def terminal(console: Any = None) -> Terminal:
    """The standard output.

    Args:
        console: a ``rich.console.Console`` to be used instead.
    """
    if console is not None:
        return RichTerminal(console)
    return RichTerminal(require("rich.console").Console()) if installed("rich") else PlainTerminal()


class RichTerminal:
    """Through a ``rich.console.Console``."""

    def __init__(self, console: Any) -> None:
        self._console = console

    def line(self, *parts: Part) -> None:
        """As text, not as markup: a module's name may hold brackets."""
        self._console.print(rich_text(*parts))

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Part]]) -> None:
        """Without lines between the rows."""
        table = require("rich.table").Table(box=require("rich.box").SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            justify, ratio = "right" if column.right else "left", 1 if column is columns[-1] else None
            table.add_column(column.heading, justify=justify, no_wrap=column.whole, overflow="fold", ratio=ratio)
        for row in rows:
            table.add_row(*(rich_text(part) for part in row))
        self._console.print(table)

    def markdown(self, text: str) -> None:
        """No wider than is good to read."""
        width = min(_PAGE, self._console.width)
        with self._console.use_theme(require("rich.theme").Theme(_CALM)):
            self._console.print(require("rich.markdown").Markdown(plain_lines(text)), width=width)


class PlainTerminal:
    """By nothing but ``print``."""

    def line(self, *parts: Part) -> None:
        """Whole, since a terminal breaks it itself."""
        say("".join(map(_text, parts)))

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Part]]) -> None:
        """Columns two spaces apart, long cells broken."""
        shown = [[plain(_text(part)) for part in row] for row in rows]
        say(*_laid_out(columns, shown, shutil.get_terminal_size().columns), "")

    def markdown(self, text: str) -> None:
        """As it stands."""
        say(*text.split("\n"))


def rich_text(*parts: Part) -> Any:
    """Parts as a ``rich.text.Text``, what is code in bold."""
    return require("rich.text").Text.assemble(*(run for part in parts for run in _runs(part)))


def _runs(part: Part) -> Iterator[tuple[str, str]]:
    text, style = (part, "") if isinstance(part, str) else part
    for span, code in spans(text):
        yield plain(span), f"{style} bold".strip() if code else style


def _text(part: Part) -> str:
    return part if isinstance(part, str) else part[0]


def _laid_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    headings = [column.heading for column in columns]
    widths = [min(_WIDEST, max(map(len, cells))) for cells in zip(headings, *rows, strict=True)]
    widths[-1] = max(_LEAST, width - sum(widths[:-1]) - 2 * (len(widths) - 1))
    for cells in (headings, ["-" * size for size in widths], *rows):
        broken = [textwrap.wrap(cell, size) or [""] for cell, size in zip(cells, widths, strict=True)]
        for line in zip_longest(*broken, fillvalue=""):
            sides = zip(line, widths, columns, strict=True)
            yield "  ".join(t.rjust(size) if column.right else t.ljust(size) for t, size, column in sides).rstrip()
