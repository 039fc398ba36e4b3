"""Events and verdicts in the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lightning_gradwatch.events import EventKind
from lightning_gradwatch.report.explain import explanation, kind_named, without_links
from lightning_gradwatch.report.live import EVENT_STYLES, counted, state, verdict_style
from lightning_gradwatch.report.remedies import remedies, some
from lightning_gradwatch.report.summary import horizon_text, summarise, summary_lines
from lightning_gradwatch.report.terminal import Column, Terminal, terminal
from lightning_gradwatch.runlog.reader import Run

_MOST = 1000
"""Rows of the table: more than anybody reads, and a terminal's table is laid out as a whole."""

_LAST = 5
"""Events shown of a run that goes on."""

_FOLDED = {EventKind.GRADIENT_CLIPPED: "norms up to", EventKind.STEP_SKIPPED: "finite norms up to"}
"""What may come a hundred times in succession, and what is said of how large its norms were."""


def print_events(events: Sequence[Mapping[str, Any]], *, console: Any = None, fold: bool = True) -> None:
    """Print the last events as a table: when, what and how bad, what happened; then each kind's
    remedy once.

    Args:
        events: event records.
        fold: successive clipped steps are one row, and successive skipped ones, since there may be
            a hundred.
        console: a ``rich.console.Console``; None is the standard output.
    """
    out = terminal(console)
    if not events:
        out.line("No events.")
        return
    rows = _folded(events) if fold else events
    columns = (Column("step", right=True, whole=True), Column("kind"), Column("what happened"))
    out.table(columns, [_row(event) for event in rows[-_MOST:]])
    if len(rows) > _MOST:
        out.line(f"These are the last {_MOST:,} of {len(rows):,} events; --json prints them all.")
    _print_remedies(out, events)


def _row(event: Mapping[str, Any]) -> tuple[str, tuple[str, str], str]:
    style = EVENT_STYLES.get(event.get("severity") or "", "")
    return str(event["step"]), (event["kind"], style), event.get("message") or ""


def _print_remedies(out: Terminal, events: Sequence[Mapping[str, Any]]) -> None:
    for kind, advice in remedies(events).items():
        known = kind_named(kind)
        more = f" More: gradwatch explain {known.page}" if known else ""
        for number, (remedy, places) in enumerate(advice.items(), 1):
            whose = f" ({some(places)})" if len(advice) > 1 else ""
            last = more if number == len(advice) else ""
            out.line((kind, "bold"), whose, ": ", remedy, (last, "dim"))


def _folded(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Events of clipping, or of skipping, that follow each other become one that says how many
    there were, when, and the largest norm."""
    rows: list[Mapping[str, Any]] = []
    for (kind, _, _), group in groupby(
        events, key=lambda event: (event["kind"], event.get("severity"), event.get("action"))
    ):
        alike = list(group)
        if kind not in _FOLDED or len(alike) == 1:
            rows += alike
            continue
        norms = [event["value"] for event in alike if event.get("value") is not None and math.isfinite(event["value"])]
        most = f", {_FOLDED[EventKind(kind)]} {max(norms):.3g}" if norms else ""
        action = f"{alike[0]['action']} " if alike[0].get("action") else ""
        said = f"{action}{len(alike)} times, steps {alike[0]['step']} to {alike[-1]['step']}{most}. --kind {kind} lists them."
        rows.append({**alike[0], "message": said[:1].upper() + said[1:]})
    return rows


def print_kinds(*, console: Any = None) -> None:
    """Print every kind of event with its severity and what it says."""
    out = terminal(console)
    rows = [(kind.page, (kind.severity, EVENT_STYLES[kind.severity]), _says(kind)) for kind in EventKind]
    out.table((Column("kind", whole=True), Column("severity"), Column("what it says")), rows)
    out.line("gradwatch explain KIND says how it is found and what to do.")


def _says(kind: EventKind) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", r"‹\1›", kind.message.replace("{detail}", ""))


def print_explanation(kind: EventKind, *, console: Any = None) -> None:
    """Print the page of a kind."""
    out = terminal(console)
    markdown, _, _ = explanation(kind).partition("## Example\n")
    out.markdown(without_links(markdown))
    out.line("")
    out.line((f"gradwatch explain {kind.page} --example prints a script that provokes it.", "dim"))


def print_summary(run: Run, *, console: Any = None) -> None:
    """Print the verdict on each module, layer and direction."""
    out = terminal(console)
    verdicts = summarise(run.profile_records, run.event_records)
    if not verdicts:
        out.line("No profile was recorded: nothing can be said about the gradient through time.")
        return
    columns = (Column("where"), Column("verdict"), Column("horizon", right=True), Column(""))
    rows = [(one.place, (one.said, verdict_style(one)), horizon_text(one), one.sentence) for one in verdicts]
    out.table(columns, rows)


def state_lines(run: Run, counts: Mapping[str, int], age: float | None) -> list[str]:
    """The present state of a run in words, for where nothing can draw it.

    Args:
        run, counts, age: as for :func:`lightning_gradwatch.report.live.frame`.
    """
    lines = [f"GradWatch {state(run, age)}  {run.path}", "", *summary_lines(run), "", f"events {counted(counts)}"]
    lines += [
        f"{event['step']:>7} {event['kind']}  {event.get('message') or ''}" for event in run.event_records[-_LAST:]
    ]
    return [*lines, "", "(drawn, it needs rich: pip install 'lightning-gradwatch[report]')"]
