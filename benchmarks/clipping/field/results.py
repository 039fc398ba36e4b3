"""Runs in a file, one a line, so that a comparison can be made in parts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.clipping.field.task import Run


@dataclass(frozen=True)
class Record:
    """One run: of which problem, rule and seed, in which size, and what became of it."""

    size: str
    task: str
    family: str
    setting: str
    seed: int
    loss: float
    lost: bool
    solved: int | None
    clipped: float

    @classmethod
    def of(cls, size: str, task: str, family: str, setting: str, seed: int, run: Run) -> Record:
        """A run's."""
        return cls(size, task, family, setting, seed, run.loss, run.lost, run.solved, run.clipped)

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Which run it is."""
        return self.size, self.task, self.family, self.setting, self.seed


class Results:
    """The runs in a file, and those to come.

    Args:
        path: of the file; it is made where there is none.
        forget: a family whose runs are left out, since they are to be made again.
    """

    def __init__(self, path: Path, forget: str | None = None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.records = [record for line in lines if (record := Record(**json.loads(line))).family != forget]
        if forget is not None:
            path.write_text("".join(_line(record) for record in self.records))

    def find(self, key: tuple[str, str, str, str, int]) -> Record | None:
        """A run that has been made."""
        return next((record for record in self.records if record.key == key), None)

    def add(self, record: Record) -> None:
        """To the file, too, at once."""
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"


@dataclass(frozen=True)
class Row:
    """A setting of a rule on a problem, over seeds."""

    family: str
    setting: str
    records: tuple[Record, ...]

    @property
    def lost(self) -> float:
        """The share of the runs."""
        return statistics.mean(record.lost for record in self.records)

    @property
    def loss(self) -> float:
        """The median at the end."""
        return statistics.median(record.loss for record in self.records)

    @property
    def clipped(self) -> float:
        """The share of all steps."""
        return statistics.mean(record.clipped for record in self.records)

    @property
    def solved(self) -> list[int]:
        """After how many updates, of the runs that were."""
        return sorted(record.solved for record in self.records if record.solved is not None)

    @property
    def rank(self) -> tuple[float, float, float, float]:
        """Fewest lost, most solved, soonest solved, least loss."""
        soonest = statistics.median(self.solved) if self.solved else 0.0
        return self.lost, -len(self.solved), soonest, self.loss


def rows(records: Iterable[Record]) -> list[Row]:
    """One a setting, in the order of their first runs."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.family, record.setting), []).append(record)
    return [Row(family, setting, tuple(own)) for (family, setting), own in found.items()]


def best(candidates: Sequence[Row]) -> Row:
    """Of one family."""
    return min(candidates, key=lambda row: row.rank)
