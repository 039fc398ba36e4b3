"""Chooses, from a run's records, what is drawn. Nothing is averaged or interpolated: records are
left out whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_gradwatch.runlog.schema import is_primary

Record = Mapping[str, Any]


class Key(NamedTuple):
    """Which gradient: of a module's layer, in a direction, with respect to the state ``h`` or
    ``c``."""

    module: str
    layer: int
    direction: str
    state: str

    @property
    def place(self) -> str:
        """Where, in words: ``rnn, layer 1 (reverse)``."""
        return f"{self.module}, layer {self.layer}" + (" (reverse)" if self.direction == "reverse" else "")

    @property
    def label(self) -> str:
        """In words: ``rnn, layer 1 (reverse), h``."""
        return f"{self.place}, {self.state}"


def group(profiles: Iterable[Record]) -> dict[Key, list[Record]]:
    """The profiles of each gradient: modules in the order of their first profile, then layers,
    directions, states.

    Where no sequence has more than one timestep there is no time to be drawn.
    """
    groups: dict[Key, list[Record]] = {}
    for record in profiles:
        key = Key(record["module"], record["layer"], record["direction"], record.get("state") or "h")
        groups.setdefault(key, []).append(record)
    leading = {key for key, of_layer in groups.items() if is_primary(of_layer[0])}
    modules = {module: place for place, module in enumerate(dict.fromkeys(key.module for key in groups))}
    groups = {key: records for key, records in groups.items() if any(record["timesteps"] > 1 for record in records)}
    return {
        key: groups[key]
        for key in sorted(
            groups, key=lambda key: (modules[key.module], key.layer, key.direction, key not in leading, key.state)
        )
    }


def select(
    profiles: Iterable[Record],
    *,
    module: str | None = None,
    layer: int | None = None,
    direction: str | None = None,
    state: str | None = None,
) -> tuple[Key, list[Record]]:
    """The profiles of one gradient: the first that fits what is given.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    groups = group(profiles)
    wanted = (module, layer, direction, state)
    for key, records in groups.items():
        if all(want is None or want == have for want, have in zip(wanted, key, strict=True)):
            return key, records
    named = {name: want for name, want in zip(Key._fields, wanted, strict=True) if want is not None}
    asked = ", ".join(f"{name}={want!r}" for name, want in named.items())
    there = "; ".join(key.label for key in groups) or "none at all"
    raise ValueError(f"The run log must hold a profile that fits ({asked or 'any'}); found {there}. Name one of these.")


def one_per_step(records: Sequence[Record]) -> list[Record]:
    """The first call of each sampled step, in the order of the steps."""
    first: dict[int, Record] = {}
    for record in records:
        first.setdefault(record["step"], record)
    return [first[step] for step in sorted(first)]


def timesteps(record: Record) -> list[int]:
    """The timestep of each entry of ``total``, ``direct`` and ``total_max``."""
    at: list[int] | None = record.get("at")
    return at if at is not None else list(range(len(record["total"])))


def lags(record: Record) -> list[int]:
    """The lag of each entry of ``lagged``."""
    at: list[int] | None = record.get("lag_at")
    return at if at is not None else list(range(len(record.get("lagged") or [])))


def channel_reach(record: Record) -> tuple[list[int], list[float]]:
    """Of a scan: timesteps, ascending, and the share of its channels that hold a gradient for so
    many or more; a last 0 where no channel outlives the sequence. Nothing of what is no scan."""
    reaches: list[int] = record.get("channel_horizons") or []
    at = list(dict.fromkeys([1, *reaches] if reaches else []))
    shares = [sum(reach >= place for reach in reaches) / len(reaches) for place in at]
    return (at, shares) if record.get("channels_censored") or not at else ([*at, at[-1]], [*shares, 0.0])


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` indices, spread evenly over ``count``, the first and the last among them."""
    if count <= most:
        return list(range(count))
    if most <= 1:
        return [count - 1][:most]
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def strided(count: int, most: int) -> range:
    """At most ``most`` indices in equal strides over ``count``, the last among them."""
    stride = max(1, -(-count // most))
    return range((count - 1) % stride, count, stride)


@dataclass(frozen=True)
class Grid:
    """Total gradients, timestep by training step.

    Args:
        steps: of the columns; ``timesteps``: of the rows.
        rows: ``rows[t][s]``; None where a sequence had no such timestep, or it was not recorded.
        thinned: in words, what was left out; empty where everything is there.
    """

    steps: list[int]
    timesteps: list[int]
    rows: list[list[float | None]]
    thinned: str = ""


def grid(records: Sequence[Record], *, most_steps: int = 1000, most_timesteps: int = 1024) -> Grid:
    """The heatmap of one gradient: sequences aligned at their start, one column per sampled
    step."""
    samples = one_per_step(records)
    columns = [samples[index] for index in strided(len(samples), most_steps)]
    known = [dict(zip(timesteps(record), record["total"], strict=True)) for record in columns]
    every = sorted({timestep for column in known for timestep in column})
    rows = [every[index] for index in strided(len(every), most_timesteps)]
    notes: list[str] = []
    if len(samples) < len(records):
        notes.append(f"the first call of each step ({len(samples)} of {len(records)} samples)")
    if len(columns) < len(samples):
        notes.append(f"{len(columns)} of {len(samples)} sampled steps")
    if len(rows) < len(every):
        notes.append(f"{len(rows)} of {len(every)} recorded timesteps")
    return Grid(
        steps=[record["step"] for record in columns],
        timesteps=rows,
        rows=[[column.get(timestep) for column in known] for timestep in rows],
        thinned="shown: " + ", ".join(notes) if notes else "",
    )
