"""All that is known of a run in one document: for scripts, and for whoever reads it to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradwatch.events import closes_episode
from lightning_gradwatch.report.explain import kind_named
from lightning_gradwatch.report.remedies import RANKS, remedies
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import LayerSummary, summarise
from lightning_gradwatch.runlog.verdict import Verdict

FORMAT_VERSION = "1.0"
"""A new minor adds fields; a new major changes what fields mean."""

Record = Mapping[str, Any]
Document = dict[str, Any]


def diagnose(run: Run) -> Document:
    """Verdicts, clipping, events, advice; ``docs/reference/diagnosis.md`` explains each field."""
    events = [event for event in run.event_records if not closes_episode(event)]
    layers = summarise(run.profile_records, run.event_records)
    groups = _groups(events)
    severities = [entry["severity"] for entry in groups] + [str(layer.severity) for layer in layers if layer.severity]
    return {
        "format_version": FORMAT_VERSION,
        "run": {
            "path": str(run.path),
            "name": run.name,
            "model": run.meta.get("model"),
            "ended": run.meta.get("ended"),
            "versions": run.meta.get("versions"),
            "skipped_lines": run.skipped_lines,
        },
        "worst": min(severities, key=_rank, default=None),
        "verdicts": [_verdict(layer, events) for layer in layers],
        "clipping": run.clipping,
        "events": groups,
        "advice": _advice(events),
    }


def _verdict(layer: LayerSummary, events: Sequence[Record]) -> Document:
    """With what its events advise, the gravest first; of a healthy one nothing."""
    here = [event for event in events if _is_at(event, layer)]
    worth = () if layer.verdict is Verdict.HEALTHY else remedies(here).values()
    return {
        "place": layer.place,
        "module": layer.module,
        "kind": layer.kind or None,
        "layer": layer.layer,
        "direction": layer.direction,
        "verdict": str(layer.verdict),
        "severity": None if layer.severity is None else str(layer.severity),
        "since": layer.since,
        "sentence": layer.sentence,
        "timesteps": layer.timesteps,
        "horizon": layer.horizon,
        "horizon_censored": layer.horizon_censored,
        "growth_rate": layer.growth_rate,
        "exact": layer.exact,
        "inexact_reason": layer.inexact_reason or None,
        "samples": layer.samples,
        "remedies": list(dict.fromkeys(remedy for of_kind in worth for remedy in of_kind)),
    }


def _is_at(event: Record, layer: LayerSummary) -> bool:
    return (
        event.get("module") == layer.module
        and event.get("layer") in (None, layer.layer)
        and event.get("direction") in (None, layer.direction)
    )


def _groups(events: Sequence[Record]) -> list[Document]:
    """The events of one kind, severity and place as one; the gravest first, then the earliest."""
    by_key: dict[tuple[Any, ...], list[Record]] = {}
    for event in events:
        key = tuple(event.get(name) for name in ("kind", "severity", "module", "layer", "direction"))
        by_key.setdefault(key, []).append(event)
    groups = [_group(alike) for alike in by_key.values()]
    return sorted(groups, key=lambda group: (_rank(group["severity"]), group["first_step"]))


def _group(events: Sequence[Record]) -> Document:
    first, page = events[0], kind_named(events[0]["kind"])
    names = ("kind", "severity", "module", "layer", "direction")
    evidence = ("epoch", "batch_idx", "rank", "state", "timestep", "sequence", "parameter", "value", "threshold")
    return {
        **{name: first.get(name) for name in names},
        "count": len(events),
        "first_step": first["step"],
        "last_step": events[-1]["step"],
        "message": first.get("message"),
        "evidence": {name: first[name] for name in (*evidence, "action") if first.get(name) is not None},
        "remedy": first.get("remedy"),
        "explain": None if page is None else f"gradwatch explain {page.page}",
    }


def _advice(events: Sequence[Record]) -> list[Document]:
    return [
        {"kind": kind, "remedy": remedy, "places": places}
        for kind, of_kind in remedies(events).items()
        for remedy, places in of_kind.items()
    ]


def _rank(severity: str | None) -> int:
    return RANKS.get(severity or "", 3)
