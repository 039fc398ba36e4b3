"""A run in a notebook's cell: its verdicts as a small table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from lightning_gradwatch.code_spans import to_html
from lightning_gradwatch.plain import plain
from lightning_gradwatch.runlog.verdict import LayerSummary

_LEFT = 'style="text-align: left"'  # notebooks put the cells of tables, which mostly hold numbers, to the right


def verdict_table(title: str, verdicts: Sequence[LayerSummary], severities: Iterable[str | None]) -> str:
    """HTML without scripts or styles of the page's.

    Args:
        title: what it is about.
        verdicts: a row each.
        severities: of the events.
    """
    counts = Counter(severity or "unknown" for severity in severities)
    events = ", ".join(f"{count:,} {severity}" for severity, count in counts.items()) or "none"
    rows = [("where", "verdict", "")] + [(one.place, one.said, one.sentence) for one in verdicts]
    body = "".join(f"<tr>{''.join(f'<td {_LEFT}>{_shown(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    head = "".join(f"<th {_LEFT}>{cell}</th>" for cell in rows[0])
    table = (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if verdicts else "<p>No verdict yet.</p>"
    )
    return f"<div><p><b>{_shown(title)}</b></p>{table}<p>Events: {_shown(events)}</p></div>"


def _shown(text: str) -> str:
    return to_html(plain(text))
