"""Events and verdicts in the terminal, by rich."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lightning_gradwatch.events import EventKind
from lightning_gradwatch.report._extra import require
from lightning_gradwatch.report.explain import explanation, kind_named, without_links
from lightning_gradwatch.report.live import EVENT_STYLES, verdict_style
from lightning_gradwatch.report.remedies import remedies, some
from lightning_gradwatch.report.summary import horizon_text, summarise
from lightning_gradwatch.runlog.plain import plain
from lightning_gradwatch.runlog.reader import Run

_CALM = {"markdown.h1": "bold", "markdown.h2": "bold", "markdown.block_quote": "", "markdown.code": "bold"}
"""A page is to be read; rich's own theme would make an alarm of it."""

_MOST = 1000
"""Rows of the table: more than anybody reads, and a terminal's table is laid out as a whole."""


def print_events(events: Sequence[Mapping[str, Any]], *, console: Any = None, fold: bool = True) -> None:
    """Print the last events as a table: when, what and how bad, what happened; then each kind's remedy once.

    Args:
        events: event records.
        fold: successive ``GRADIENT_CLIPPED`` events are one row, since a policy may leave a hundred.
        console: a ``rich.console.Console``; None is the standard output.

    Raises:
        ImportError: rich is missing.
    """
    console = console or require("rich.console").Console()
    text = require("rich.text").Text  # text, not markup: a module's name may hold brackets
    if not events:
        console.print("No events.")
        return
    table = require("rich.table").Table(box=require("rich.box").SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("kind", overflow="fold")
    table.add_column("what happened", overflow="fold", ratio=1)
    rows = _folded(events) if fold else events
    for event in rows[-_MOST:]:
        style = EVENT_STYLES.get(event.get("severity") or "", "")
        table.add_row(
            text(str(event["step"])), text(plain(event["kind"]), style=style), text(plain(event.get("message") or ""))
        )
    console.print(table)
    if len(rows) > _MOST:
        console.print(f"These are the last {_MOST:,} of {len(rows):,} events; --json prints them all.")
    for kind, advice in remedies(events).items():
        known = kind_named(kind)
        more = f" More: gradwatch explain {known.page}" if known else ""
        for number, (remedy, places) in enumerate(advice.items(), 1):
            whose = f" ({plain(some(places))})" if len(advice) > 1 else ""
            last = more if number == len(advice) else ""
            console.print(text.assemble((plain(kind), "bold"), whose, ": ", plain(remedy), (last, "dim")))


def _folded(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Events of clipping that follow each other become one that says how many there were, when, and the largest norm."""
    rows: list[Mapping[str, Any]] = []
    for kind, group in groupby(events, key=lambda event: event["kind"]):
        found = list(group)
        if kind != EventKind.GRADIENT_CLIPPED or len(found) == 1:
            rows += found
            continue
        norms = [event["value"] for event in found if event.get("value") is not None]
        most = f", norms up to {max(norms):.3g}" if norms else ""
        said = f"{len(found)} times, steps {found[0]['step']} to {found[-1]['step']}{most}. --kind {kind} lists them."
        rows.append({**found[0], "message": said})
    return rows


def print_kinds(*, console: Any = None) -> None:
    """Print every kind of event with its severity and what it says.

    Raises:
        ImportError: rich is missing.
    """
    console = console or require("rich.console").Console()
    text = require("rich.text").Text
    table = require("rich.table").Table(box=require("rich.box").SIMPLE_HEAD, pad_edge=False)
    for heading, options in (("kind", {"no_wrap": True}), ("severity", {}), ("what it says", {"ratio": 1})):
        table.add_column(heading, **options)
    for kind in EventKind:
        says = re.sub(r"\{(\w+)[^}]*\}", r"‹\1›", kind.message.replace("{detail}", ""))
        table.add_row(kind.page, text(kind.severity, style=EVENT_STYLES[kind.severity]), text(says))
    console.print(table)
    console.print("gradwatch explain KIND says how it is found and what to do.")


def print_explanation(kind: EventKind, *, console: Any = None) -> None:
    """Print the page of a kind.

    Raises:
        ImportError: rich is missing.
    """
    console = console or require("rich.console").Console(width=min(100, shutil.get_terminal_size().columns))
    markdown, _, _ = explanation(kind).partition("## Example\n")
    with console.use_theme(require("rich.theme").Theme(_CALM)):
        console.print(require("rich.markdown").Markdown(without_links(markdown)))
    console.print()
    console.print(f"gradwatch explain {kind.page} --example prints a script that provokes it.", style="dim")


def print_summary(run: Run, *, console: Any = None) -> None:
    """Print the verdict on each module, layer and direction.

    Raises:
        ImportError: rich is missing.
    """
    console = console or require("rich.console").Console()
    text = require("rich.text").Text
    table = require("rich.table").Table(box=require("rich.box").SIMPLE_HEAD, pad_edge=False)
    for heading, options in (("where", {}), ("verdict", {}), ("horizon", {"justify": "right"}), ("", {"ratio": 1})):
        table.add_column(heading, overflow="fold", **options)
    found = summarise(run.profile_records, run.event_records)
    for layer in found:
        verdict = text(layer.said, style=verdict_style(layer))
        place, horizon, sentence = (text(plain(cell)) for cell in (layer.place, horizon_text(layer), layer.sentence))
        table.add_row(place, verdict, horizon, sentence)
    console.print(table if found else "No profile was recorded: nothing can be said about the gradient through time.")
