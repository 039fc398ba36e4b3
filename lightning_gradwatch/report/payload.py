"""What the page draws, as plain numbers: records chosen so that a long run still makes a small
page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradwatch.report import series
from lightning_gradwatch.report.scales import Scale, scales
from lightning_gradwatch.report.series import Grid, Key
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.thresholds import MAX_POINTS

_CELLS = 500_000  # of all heatmaps together: about 5 MB of the page
_POINTS = 40_000  # of all other curves, per list
_TIMESTEPS = 512  # rows of a heatmap: more than its pixels show nothing more
_SERIES = 200
_LAG_CURVES = 5
_STEPS = 4_000

Record = Mapping[str, Any]


def build(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """The data of the page: for each run, its gradients by key, and its optimizer steps.

    Numbers are rounded to six significant digits. Whatever is left out is said in a ``note`` beside
    it.
    """
    groups = [series.group(run.profile_records) for run in runs]
    every = list(dict.fromkeys(key for of_run in groups for key in of_run))
    keys = every[:_SERIES]
    drawn = sum(key in of_run for of_run in groups for key in keys)
    cells, points = _CELLS // max(1, drawn), min(MAX_POINTS, _POINTS // max(1, drawn))
    grids = [[_grid(of_run.get(key, []), cells) for of_run in groups] for key in keys]
    colours = [scales([grid.rows for grid in row]) for row in grids]
    return {
        "keys": [{"place": key.place, "state": key.state} for key in keys],
        "omitted": len(every) - len(keys),
        "runs": [
            {
                "name": name,
                "series": {
                    str(place): _gradient(of_run[key], points, grids[place][at], colours[place][at])
                    for place, key in enumerate(keys)
                    if key in of_run
                },
                "clipping": _clipping(run.step_records),
                "loss": _loss(run),
            }
            for at, (run, name, of_run) in enumerate(zip(runs, names, groups, strict=True))
        ],
    }


def key_of(event: Record, keys: Sequence[Key]) -> int | None:
    """The place of the gradient that an event is about: the first key that fits what the event
    names.

    A state of which there is no gradient, as a gate, is passed over.
    """
    if event.get("module") is None:
        return None
    where = (event["module"], event.get("layer"), event.get("direction"))
    for wanted in ((*where, event.get("state")), (*where, None)):
        for place, key in enumerate(keys):
            if all(want is None or want == have for want, have in zip(wanted, key, strict=True)):
                return place
    return None


def _grid(records: Sequence[Record], cells: int) -> Grid:
    longest = max((len(record["total"]) for record in records), default=0)
    rows = min(_TIMESTEPS, max(1, longest))
    return series.grid(records, most_steps=max(20, min(1000, cells // rows)), most_timesteps=rows)


def _gradient(records: Sequence[Record], points: int, grid: Grid, colours: Scale) -> dict[str, Any]:
    samples = series.one_per_step(records)
    return {
        "grid": {
            "steps": grid.steps,
            "timesteps": grid.timesteps,
            "rows": [[_short(value) for value in row] for row in grid.rows],
            "scale": [colours.low, colours.high],
            "note": grid.thinned,
            "beyond": colours.notes(grid.rows),
        },
        "last": _last(samples[-1], points),
        "lag": _lag(samples, points),
        "horizon": _horizon(samples, points),
        "channels": _channels(samples),
    }


def _last(record: Record, points: int) -> dict[str, Any]:
    at = series.timesteps(record)
    kept = series.spread(len(at), points)
    return {
        "step": record["step"],
        "at": [at[place] for place in kept],
        **{name: _take(record.get(name), kept) for name in ("total", "total_max", "direct")},
        "note": _thinned(kept, at, "timesteps"),
    }


def _lag(samples: Sequence[Record], points: int) -> list[dict[str, Any]]:
    able = [record for record in samples if any(map(math.isfinite, record.get("lagged") or []))]
    curves: list[dict[str, Any]] = []
    for place in series.spread(len(able), _LAG_CURVES):
        record, at = able[place], series.lags(able[place])
        kept = series.spread(len(at), points)
        curves.append(
            {
                "step": record["step"],
                "at": [at[index] for index in kept],
                "lagged": _take(record["lagged"], kept),
                "horizon": record.get("horizon"),
                "censored": bool(record.get("horizon_censored")),
                "note": _thinned(kept, at, "lags"),
            }
        )
    return curves


def _horizon(samples: Sequence[Record], points: int) -> dict[str, Any]:
    kept = series.spread(len(samples), points)
    chosen = [samples[place] for place in kept]
    return {
        "steps": [record["step"] for record in chosen],
        "horizon": [record.get("horizon") for record in chosen],
        "censored": [bool(record.get("horizon_censored")) for record in chosen],
        "timesteps": [record["timesteps"] for record in chosen],
        "growth": [_short(record.get("growth_rate")) for record in chosen],
        "note": _thinned(kept, samples, "samples"),
    }


def _channels(samples: Sequence[Record]) -> list[dict[str, Any]]:
    able = [record for record in samples if record.get("channel_horizons")]
    rows: list[dict[str, Any]] = []
    for place in series.spread(len(able), _LAG_CURVES):
        record = able[place]
        at, shares = series.channel_reach(record)
        count, censored = record.get("channels"), record.get("channels_censored")
        percent = [_short(100 * share) for share in shares]
        rows.append({"step": record["step"], "at": at, "percent": percent, "channels": count, "censored": censored})
    return rows


def _clipping(steps: Sequence[Record]) -> list[dict[str, Any]]:
    """Per optimizer: evenly spread steps; besides these, the largest norms, so that no spike is
    thinned away."""
    by_optimizer: dict[int, list[Record]] = {}
    for record in steps:
        by_optimizer.setdefault(record.get("optimizer") or 0, []).append(record)
    rows: list[dict[str, Any]] = []
    for optimizer in sorted(by_optimizer)[:8]:
        records = by_optimizer[optimizer]
        largest = sorted(range(len(records)), key=lambda place: -(records[place].get("grad_norm") or 0.0))
        marked = [place for place, record in enumerate(records) if record.get("skipped") or _is_clipped(record)]
        spread = series.spread(len(records), _STEPS)
        marks = [marked[place] for place in series.spread(len(marked), _STEPS // 4)]
        kept = sorted({*spread, *marks, *largest[: _STEPS // 8]}) if len(spread) < len(records) else spread
        chosen = [records[place] for place in kept]
        rows.append(
            {
                "optimizer": optimizer,
                "steps": [record["step"] for record in chosen],
                "norm": [_short(record.get("grad_norm")) for record in chosen],
                "threshold": [_short(record.get("clip_threshold")) for record in chosen],
                "clipped": [_is_clipped(record) for record in chosen],
                "skipped": [bool(record.get("skipped")) for record in chosen],
                "counts": {
                    "steps": len(records),
                    "clipped": sum(map(_is_clipped, records)),
                    "skipped": sum(bool(record.get("skipped")) for record in records),
                },
                "note": _thinned(kept, records, "optimizer steps, the largest norms among them,"),
            }
        )
    return rows


def _loss(run: Run) -> dict[str, Any]:
    """The loss of every optimizer step where AdaptiveClip recorded it, else that of the sampled
    steps; what is not finite is kept."""
    able = [record for record in run.step_records if record.get("loss") is not None]
    sampled = not able
    able = able or [record for record in series.one_per_step(run.profile_records) if record.get("loss") is not None]
    marked = [place for place, record in enumerate(able) if not math.isfinite(record["loss"])]
    marks = [marked[place] for place in series.spread(len(marked), _STEPS // 4)]
    kept = sorted({*series.spread(len(able), _STEPS), *marks})
    return {
        "steps": [able[place]["step"] for place in kept],
        "loss": [_short(able[place]["loss"]) for place in kept],
        "sampled": sampled,
        "note": _thinned(kept, able, "losses"),
    }


def _is_clipped(record: Record) -> bool:
    coefficient = record.get("clip_coefficient")
    return not record.get("skipped") and coefficient is not None and coefficient < 1.0


def _take(values: Sequence[float] | None, kept: Sequence[int]) -> list[float | None] | None:
    return None if values is None else [_short(values[place]) for place in kept]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _thinned(kept: Sequence[int], every: Sequence[Any], noun: str) -> str:
    return f"{len(kept)} of {len(every)} {noun} shown" if len(kept) < len(every) else ""
