"""The results as a table of the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tests.matrix.combinations import COMBINATIONS
from tests.matrix.environment import ROOT
from tests.matrix.known import explanation
from tests.matrix.outcome import Outcome

RESULTS = ROOT / "tests" / "matrix" / "results.json"
PAGE = ROOT / "docs" / "reference" / "versions.md"
BEGIN, END = "<!-- written by `make matrix`: begin -->\n", "<!-- end -->\n"

_VERSIONED = ("PyTorch before", "Lightning before", "Python before")
_COLUMNS = ("Python", "torch", "lightning", "torchmetrics", "numpy")


def load(path: Path = RESULTS) -> dict[str, Outcome]:
    """What earlier runs gave, by combination."""
    return {one["name"]: Outcome(**one) for one in json.loads(path.read_text("utf-8"))} if path.exists() else {}


def store(outcomes: Iterable[Outcome], path: Path = RESULTS) -> None:
    """In the order of the combinations; those of combinations that are no more are dropped."""
    by_name = {one.name: one for one in outcomes}
    kept = [asdict(by_name[one.name]) for one in COMBINATIONS if one.name in by_name]
    path.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def markdown(outcomes: Iterable[Outcome]) -> str:
    """One row a combination; below, each failure and each reason for which an old release skips."""
    outcomes = list(outcomes)
    if not outcomes:
        return ""
    head = [*_COLUMNS, "tests", "passed", "failed", "skipped"]
    lines = [_row(head), _row(["---"] * len(head)), *map(_outcome_row, outcomes)]
    return "\n".join([*lines, "", *_failures(outcomes), "", *_skips(outcomes)]) + "\n"


def write(text: str, page: Path = PAGE) -> None:
    """Put the table where the page has its marks.

    Raises:
        ValueError: it has none.
    """
    before, begins, rest = page.read_text("utf-8").partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not begins or not ends:
        raise ValueError(f"{page} must have the lines {BEGIN.strip()} and {END.strip()}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _outcome_row(one: Outcome) -> str:
    tests = ", ".join(test.rpartition("/")[2] for test in one.tests)
    counts = (one.passed, len(one.failures), sum(one.skips.values()))
    return _row([*(one.versions.get(name, "") for name in _COLUMNS), tests, *map(str, counts)])


def _failures(outcomes: Iterable[Outcome]) -> list[str]:
    found = [(one, test) for one in outcomes for test in one.failures]
    if not found:
        return ["No test failed."]
    return [f"- `{test}` ({one.name}): {explanation(test) or 'not explained yet.'}" for one, test in found]


def _skips(outcomes: Iterable[Outcome]) -> list[str]:
    """Other reasons, as the lack of a GPU, are no matter of versions."""
    found = [
        f"- torch {one.versions['torch']}, Lightning {one.versions['lightning']}: {count} × {reason}."
        for one in outcomes
        for reason, count in one.skips.items()
        if reason.startswith(_VERSIONED)
    ]
    return ["Skipped because a release lacks something:", "", *found] if found else []
