"""The present state of a run as one frame for a terminal, made to fit it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradwatch.events import Severity, closes_episode
from lightning_gradwatch.report import series
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.live_heatmap import heatmap
from lightning_gradwatch.report.live_norms import loss, norms
from lightning_gradwatch.report.summary import LayerSummary, horizon_text
from lightning_gradwatch.report.terminal import Part, rich_text
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import Verdict, summarise

EVENT_STYLES: dict[str, str] = {Severity.CRITICAL: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
VERDICT_STYLES = {
    Verdict.HEALTHY: "bold green",
    Verdict.SHORTENED: "bold green",
    Verdict.VANISHING: "bold yellow",
    Verdict.BARELY_REACHED: "bold yellow",
    Verdict.EXPLODING: "bold red",
    Verdict.SATURATED: "bold yellow",
    Verdict.NO_GRADIENT_THROUGH_TIME: "bold yellow",
    Verdict.NOT_FINITE: "bold red",
    Verdict.DIVERGED: "bold red",
}
_CALM = (Verdict.HEALTHY, Verdict.SHORTENED)
_MOST_ROWS = 8
_FEWEST_ROWS = 2
_EVENTS = 5


def frame(
    run: Run,
    *,
    width: int,
    height: int | None = None,
    counts: Mapping[str, int] | None = None,
    age: float | None = None,
) -> Any:
    """Heatmaps, norms and the last events, as a rich renderable of at most ``height`` lines.

    Args:
        run: its records; recent ones are enough.
        width, height: characters and lines there are; None draws everything.
        counts: events of each severity; None counts those of ``run``.
        age: seconds since the last record was written.

    Raises:
        ImportError: rich is missing.
    """
    lines = [_title(run, age), _blank()]
    optimizers = _optimizers(run)[:2]
    below = loss(run, width) + ([] if optimizers else [_blank()])
    below += [line for optimizer in optimizers for line in norms(run, optimizer, width)]
    below += _events(run, counts, _EVENTS if height is None or height > 20 else 2)
    room = None if height is None else height - len(lines) - len(below)
    lines += _gradients(run, width, room) + below
    return require("rich.console").Group(*(lines if height is None else lines[: max(1, height)]))


def verdict_style(layer: LayerSummary) -> str:
    """The style of a verdict's word: what is only a note is not painted as a warning."""
    return "bold" if layer.is_note or layer.troubled or layer.risen else VERDICT_STYLES.get(layer.verdict, "bold")


def waiting(path: str) -> Any:
    """The frame that stands while there is no run log."""
    return _text(("GradWatch ", "bold"), f"waits for a run log in {path} (Ctrl-C ends)")


def _title(run: Run, age: float | None) -> Any:
    return _text(("GradWatch ", "bold"), state(run, age), (f"  {run.path}", "dim"))


def state(run: Run, age: float | None) -> str:
    """How far the run has come, and how long ago it wrote something."""
    steps = [record["step"] for records in (run.profile_records, run.step_records) for record in records]
    said = f"step {max(steps):,}" if steps else "nothing recorded yet"
    if age is not None:
        said += f", written {_ago(age)} ago"
    if run.skipped_lines:
        said += f", {run.skipped_lines:,} damaged line(s) passed over"
    return said


def _gradients(run: Run, width: int, room: int | None) -> list[Any]:
    groups = series.group(run.profile_records)
    layers = summarise(run.profile_records, run.event_records)
    if not layers:
        return [_text("No profile was recorded yet."), _blank()]
    if room is None:
        shown, rows = layers, _MOST_ROWS
    else:
        # What is not well comes first where there is no room for all.
        ranked = sorted(layers, key=lambda layer: layer.is_note or layer.verdict in _CALM)
        able = max(1, room // (_FEWEST_ROWS + 3 + any(layer.inexact_reason for layer in layers)))
        chosen = {id(layer) for layer in ranked[:able]}
        shown = [layer for layer in layers if id(layer) in chosen]
        spare = room - (1 if len(shown) < len(layers) else 0)
        reasons = any(layer.inexact_reason for layer in shown)
        rows = min(_MOST_ROWS, max(_FEWEST_ROWS, spare // len(shown) - 3 - reasons))
    lines: list[Any] = []
    for layer in shown:
        lines.append(_head(layer))
        if layer.inexact_reason:
            lines.append(_text((f"  not exact: {layer.inexact_reason}", "yellow")))
        records = _records_of(groups, layer)
        if records:
            lines += heatmap(records, width=width, rows=rows)
        lines.append(_blank())
    if len(shown) < len(layers):
        lines.append(_text((f"{len(layers) - len(shown)} more: enlarge the window, or see gradwatch report.", "dim")))
    return lines


def _head(layer: LayerSummary) -> Any:
    parts: list[Part] = [(layer.place, "bold"), f" {layer.kind}  " if layer.kind else "  "]
    parts.append((layer.said, verdict_style(layer)))
    if layer.layer is None or layer.horizon is None:
        return _text(*parts, f"  {layer.sentence}")
    parts.append(f"  horizon {horizon_text(layer)}")
    if layer.growth_rate is not None:
        parts.append(f"  growth {layer.growth_rate:+.2g} nats/timestep")
    if not layer.exact:
        parts.append(("  not exact", "yellow"))
    return _text(*parts)


def _records_of(groups: Mapping[series.Key, list[series.Record]], layer: LayerSummary) -> list[series.Record]:
    """The hidden state's profiles, as for the verdict; those of what else was recorded where there
    are none."""
    fitting = [records for key, records in groups.items() if key[:3] == (layer.module, layer.layer, layer.direction)]
    return fitting[0] if fitting else []


def _optimizers(run: Run) -> list[int]:
    return sorted({record.get("optimizer") or 0 for record in run.step_records})


def _events(run: Run, counts: Mapping[str, int] | None, most: int) -> list[Any]:
    if counts is None:
        severities = [event.get("severity") or "" for event in run.event_records if not closes_episode(event)]
        counts = {severity: severities.count(severity) for severity in set(severities)}
    lines = [_text(("events ", "bold"), counted(counts))]
    return lines + [_event(event) for event in run.event_records[-most:]]


def counted(counts: Mapping[str, int]) -> str:
    """How many events of each severity there are, the gravest first."""
    said = ", ".join(f"{counts[severity]:,} {severity}" for severity in reversed(Severity) if counts.get(severity))
    return said or "none"


def _event(event: Mapping[str, Any]) -> Any:
    kind, message = event["kind"], event.get("message") or ""
    return _text(f"{event['step']:>7} ", (kind, EVENT_STYLES.get(event.get("severity") or "", "")), f"  {message}")


def _ago(seconds: float) -> str:
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _text(*parts: Part) -> Any:
    whole = rich_text(*parts)
    whole.no_wrap, whole.overflow = True, "ellipsis"
    return whole


def _blank() -> Any:
    return _text(" ")
