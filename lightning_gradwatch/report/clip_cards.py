"""What became of each optimizer's gradients between backward pass and step, as cards of the page.
Whatever comes from a run log is escaped here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from lightning_gradwatch.audit import ClipVerdict
from lightning_gradwatch.code_spans import to_html
from lightning_gradwatch.runlog.reader import Run

_SIGNS: dict[str, str] = {  # told apart without colour
    ClipVerdict.NONE: "∅",
    ClipVerdict.NEVER_ACTED: "○",
    ClipVerdict.SAFETY_NET: "✓",
    ClipVerdict.STEP_LIMITER: "▼",
    ClipVerdict.NO_EFFECT: "!",
    ClipVerdict.UNDECIDED: "?",
}
_MOST = 20

Record = Mapping[str, Any]


def cards(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A card for each optimizer of each run; empty where no run says anything."""
    named = [(name, run.clipping[:_MOST]) for run, name in zip(runs, names, strict=True) if run.clipping]
    said = "".join(
        _card(entry, name if len(runs) > 1 else "", several=len(entries) > 1)
        for name, entries in named
        for entry in entries
    )
    return f'<div class="cards clipping">{said}</div>' if said else ""


def _card(entry: Record, run: str, *, several: bool) -> str:
    verdict = str(entry["verdict"])
    of = ", ".join(filter(None, (run, f"optimizer {entry['optimizer']}" if several else "")))
    remedy = f"<p><b>What to do:</b> {to_html(entry['remedy'])}</p>" if entry.get("remedy") else ""
    facts = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in _facts(entry))
    head = f"<h4>{escape(of)}</h4>" if of else ""
    return (
        f'<article class="card {escape(verdict.replace(" ", "-"))}"><p class=badge><span aria-hidden=true>'
        f"{_SIGNS.get(verdict, '?')}</span> {escape(verdict.capitalize())}</p>{head}"
        f"<p>{to_html(entry.get('sentence') or '')}</p>{remedy}<dl>{facts}</dl></article>"
    )


def _facts(entry: Record) -> Iterator[tuple[str, str]]:
    if entry.get("by") and entry["verdict"] not in (ClipVerdict.NONE, ClipVerdict.NO_EFFECT):
        yield "clips", ", ".join(entry["by"])
    if entry.get("samples") is not None and entry.get("steps") is not None:
        yield "looked at", f"{entry['samples']:,} of {entry['steps']:,} steps"
    norms = entry.get("norm_percentiles") or {}
    if norms:
        shown = {"p50": "50 %", "p90": "90 %", "p99": "99 %", "max": "largest"}
        yield (
            "gradient norms",
            ", ".join(f"{words} {norms[name]:.3g}" for name, words in shown.items() if name in norms),
        )
