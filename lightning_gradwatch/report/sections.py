"""The parts of the page that are text: verdicts, notes, events. Whatever comes from a run log is
escaped here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lightning_gradwatch.code_spans import to_html
from lightning_gradwatch.events import closes_episode
from lightning_gradwatch.report.explain import body, kind_named, without_links
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.inputs import ONLY_OF, asked_for, without_influence
from lightning_gradwatch.report.payload import key_of
from lightning_gradwatch.report.remedies import RANKS, remedies, some
from lightning_gradwatch.report.series import Key
from lightning_gradwatch.report.summary import LayerSummary, horizon_text, summarise
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import Verdict

_MOST_EVENTS = 500
_MOST_VERDICTS = 100
_SIGNS = {  # told apart without colour
    Verdict.HEALTHY: "✓",
    Verdict.VANISHING: "↘",
    Verdict.SHORTENED: "⇥",
    Verdict.EXPLODING: "↗",
    Verdict.SATURATED: "▬",
    Verdict.NO_GRADIENT_THROUGH_TIME: "⊣",
    Verdict.BARELY_REACHED: "⇤",
    Verdict.NOT_FINITE: "×",
    Verdict.DIVERGED: "↑",
    Verdict.UNDECIDED: "?",
    Verdict.NOT_OBSERVED: "∅",
}
_A_NOTE = "vanishing (a note)"
_GRAVEST = (
    Verdict.NOT_FINITE,
    Verdict.DIVERGED,
    Verdict.EXPLODING,
    Verdict.SATURATED,
    Verdict.NO_GRADIENT_THROUGH_TIME,
    Verdict.BARELY_REACHED,
    Verdict.VANISHING,
    Verdict.NOT_OBSERVED,
    Verdict.UNDECIDED,
    _A_NOTE,
    Verdict.SHORTENED,
    Verdict.HEALTHY,
)

Record = Mapping[str, Any]


def headline(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The verdicts in one sentence, the gravest first: of several runs, by run; of one, by
    layer."""
    places: dict[str, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        for layer in summarise(run.profile_records, run.event_records):
            said = places.setdefault(_word(layer), [])
            place = name if len(runs) > 1 else layer.place
            if place not in said:
                said.append(place)
    parts = [f"<b>{word}</b> in {escape(some(places[word]))}" for word in sorted(places, key=_rank)]
    return f"<p class=headline>{'; '.join(parts)}.</p>" if parts else ""


def _word(layer: LayerSummary) -> str:
    """The verdict as the headline has it."""
    if layer.verdict is Verdict.HEALTHY:
        return layer.said
    return _A_NOTE if layer.is_note else layer.verdict


def _rank(word: str) -> float:
    """The gravest first, and what is healthy with a reservation before what is healthy."""
    return _GRAVEST.index(word) if word in _GRAVEST else len(_GRAVEST) - 1.5


def verdicts(runs: Sequence[Run], names: Sequence[str], keys: Sequence[Key]) -> str:
    """A card for each module, layer and direction of each run, which leads to its pictures."""
    parts: list[str] = []
    for run, name in zip(runs, names, strict=True):
        layers = summarise(run.profile_records, run.event_records)
        cards = "".join(_card(layer, keys) for layer in layers[:_MOST_VERDICTS])
        if not layers:
            cards = "<p>No profile was recorded: nothing can be said about the gradient through time.</p>"
        if len(layers) > _MOST_VERDICTS:
            cards += f"<p>{len(layers) - _MOST_VERDICTS} more are left out here.</p>"
        parts.append(f'<section class="run"><h3>{escape(name)}</h3><div class="cards">{cards}</div></section>')
    return "".join(parts)


def notes(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What the reader must know about the records themselves."""
    parts = [
        f"<p class=note>{escape(name)}: {run.skipped_lines:,} torn or malformed "
        f"{'line was' if run.skipped_lines == 1 else 'lines were'} passed over.</p>"
        for run, name in zip(runs, names, strict=True)
        if run.skipped_lines
    ]
    for run, name in zip(runs, names, strict=True):
        missing = without_influence(run.profile_records) if asked_for(run) else []
        if missing:
            parts.append(f"<p class=note>{escape(name)}: no influence of {escape(some(missing))}. {ONLY_OF}</p>")
    return "".join(parts)


def events(runs: Sequence[Run], names: Sequence[str], keys: Sequence[Key]) -> str:
    """The events of all runs: how many of each kind, then a table of the gravest ones in the order
    of their steps."""
    every = [(place, event) for place, run in enumerate(runs) for event in run.event_records]
    if not every:
        return "<p>No event was recorded.</p>"
    counts = Counter(event["kind"] for _, event in every if not closes_episode(event))
    chips = "".join(
        f'<li><button type=button class=chip aria-pressed=false data-kind="{escape(kind)}">{escape(kind)} <b>{count:,}</b></button></li>'
        for kind, count in counts.most_common(30)
    )
    gravest = sorted(every, key=lambda item: RANKS.get(item[1].get("severity") or "", 3))[:_MOST_EVENTS]
    rows = "".join(
        _row(place, names[place], event, keys, several=len(runs) > 1)
        for place, event in sorted(gravest, key=lambda item: item[1]["step"])
    )
    left_out = ""
    if len(every) > len(gravest):
        left_out = (
            f"<p class=note>The table holds the {len(gravest)} gravest of {len(every):,} events; "
            "<code>gradwatch events</code> lists them all.</p>"
        )
    headings = ["step", *(["run"] if len(runs) > 1 else []), "severity", "kind", "where", "what happened"]
    head = "".join(
        f'<th aria-sort="{"ascending" if heading == "step" else "none"}"><button type=button>{heading}</button></th>'
        for heading in headings
    )
    return (
        f'<ul class="chips" aria-label="Show one kind only">{chips}</ul>{left_out}'
        '<div class="scroll" tabindex="0" role="region" aria-label="Events">'
        f'<table id="events"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{_remedies(every, names)}'
    )


def footer(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Which versions wrote the records."""
    wrote: dict[str, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        versions = run.meta.get("versions")
        if isinstance(versions, Mapping):
            pairs = list(versions.items())[:10]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            said = ", ".join(f"{part} {version}" for part, version in pairs)  # pyright: ignore[reportUnknownVariableType]
            wrote.setdefault(said[:500], []).append(name)
    return "".join(f"<p>{escape(', '.join(of))}: {escape(said)}</p>" for said, of in wrote.items())


def _card(layer: LayerSummary, keys: Sequence[Key]) -> str:
    facts: list[str] = []
    if layer.horizon is not None:
        facts.append(f"<div><dt>horizon</dt><dd>{horizon_text(layer)} timesteps</dd></div>")
    if layer.growth_rate is not None:
        facts.append(f"<div><dt>growth rate</dt><dd>{layer.growth_rate:+.3g} per timestep</dd></div>")
    facts.append(f"<div><dt>samples</dt><dd>{layer.samples:,}</dd></div>")
    facts.append(f"<div><dt>events</dt><dd>{layer.events:,}</dd></div>")
    reserved = layer.is_note or layer.troubled or layer.risen
    word = "noted" if reserved else layer.verdict.replace(" ", "-")
    wanted = {"module": layer.module, "layer": layer.layer, "direction": layer.direction}
    key, place = key_of(wanted, keys) if layer.layer is not None else None, escape(layer.place)
    if key is not None:
        place = f'<button type=button class=pick data-key={key} title="Show its pictures">{place}</button>'
    kind = f" <span class=kind>{escape(layer.kind)}</span>" if layer.kind else ""
    return (
        f'<article class="card {word}"><p class=badge><span aria-hidden=true>{_SIGNS[layer.verdict]}</span> '
        f"{layer.said.capitalize()}</p><h4>{place}{kind}</h4><p>{to_html(layer.sentence)}</p>"
        f"<dl>{''.join(facts)}</dl></article>"
    )


def _row(place: int, name: str, event: Record, keys: Sequence[Key], *, several: bool) -> str:
    severity = event.get("severity") or ""
    key = key_of(event, keys)
    step = event["step"]
    at = {"run": place, "step": step, "key": "" if key is None else key, "timestep": event.get("timestep")}
    data = " ".join(f'data-{name}="{value}"' for name, value in at.items() if value is not None)
    link = f'<button type=button class=goto {data} title="Show this step in the pictures">'
    cells = [(f"{link}{step}</button>", step), *([(escape(name), place)] if several else [])]
    cells.append((f'<span class="severity {escape(severity)}">{escape(severity)}</span>', RANKS.get(severity, 3)))
    cells += [(escape(text), None) for text in (event["kind"], _where(event))]
    cells.append((to_html(event.get("message") or ""), None))
    return (
        f'<tr data-kind="{escape(event["kind"])}">'
        + "".join(f"<td{'' if order is None else f' data-order={order}'}>{cell}</td>" for cell, order in cells)
        + "</tr>"
    )


def _where(event: Record) -> str:
    names = ("module", "layer", "direction", "state", "timestep", "sequence", "parameter")
    parts = [
        str(event[name]) if name == "module" else f"{name} {event[name]}"
        for name in names
        if event.get(name) is not None and event[name] not in ("forward", "h")
    ]
    return ", ".join(parts)


def _remedies(every: Sequence[tuple[int, Record]], names: Sequence[str]) -> str:
    if len(names) > 1:
        every = [(place, {**event, "module": _of_run(names[place], event.get("module"))}) for place, event in every]
    items = "".join(
        f"<dt>{escape(kind)}</dt>{_advice(advice)}<dd>{_page(kind)}</dd>"
        for kind, advice in list(remedies(event for _, event in every).items())[:30]
    )
    return f"<h3>What to do</h3><dl class=remedies>{items}</dl>" if items else ""


def _of_run(name: str, module: str | None) -> str:
    return name if module is None else f"{name}: {module}"


def _advice(advice: Mapping[str, list[str]]) -> str:
    whose = [f"<b>{escape(some(places))}:</b> " if len(advice) > 1 else "" for places in advice.values()]
    return "".join(f"<dd>{who}{to_html(remedy)}</dd>" for who, remedy in list(zip(whose, advice, strict=True))[:10])


def _page(name: str) -> str:
    """The whole page of a kind, folded; nothing for a kind of a later version."""
    kind = kind_named(name)
    if kind is None:
        return ""
    markdown, _, _ = without_links(body(kind.page)).partition("## Example\n")
    html = require("markdown_it").MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return (
        f"<details><summary>What it means, how it is found, what to do</summary>{html.replace('h2>', 'h4>')}</details>"
    )
