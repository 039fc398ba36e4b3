"""The results as a table of the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.matrix.combinations import COMBINATIONS
from tests.matrix.environment import ROOT
from tests.matrix.known import explanation
from tests.matrix.outcome import SLOW, Outcome, Piece

RESULTS = ROOT / "tests" / "matrix" / "results.json"
PAGE = ROOT / "docs" / "reference" / "versions.md"
BEGIN, END = "<!-- written by `make matrix`: begin -->\n", "<!-- end -->\n"

_VERSIONED = ("PyTorch before", "Lightning before", "Python before")
_COLUMNS = ("Python", "torch", "lightning", "torchmetrics", "numpy")


def load(path: Path | None = None) -> dict[str, Outcome]:
    """What earlier runs gave, by combination."""
    path = path or RESULTS
    rows = json.loads(path.read_text("utf-8")) if path.exists() else []
    return {one["name"]: _outcome(**one) for one in rows}


def _outcome(name: str, versions: dict[str, str], pieces: dict[str, dict[str, Any]]) -> Outcome:
    return Outcome(name, versions, {tests: Piece(**piece) for tests, piece in pieces.items()})


def store(outcomes: Iterable[Outcome], path: Path | None = None) -> None:
    """In the order of the combinations; those of combinations that are no more are dropped."""
    path = path or RESULTS
    by_name = {one.name: one for one in outcomes}
    kept = [asdict(by_name[one.name]) for one in COMBINATIONS if one.name in by_name]
    path.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def put(one: Outcome) -> None:
    """Into the results and the page, beside what they have of other rows, and of other folders of this one."""
    known = load()
    store({**known, one.name: one.with_earlier(known.get(one.name))}.values())
    write(markdown(load().values()))


def markdown(outcomes: Iterable[Outcome]) -> str:
    """One row a combination; below, each failure and each reason for which an old release skips."""
    outcomes = list(outcomes)
    if not outcomes:
        return ""
    head = [*_COLUMNS, "tests", "passed", "failed", "skipped", "commit"]
    lines = [_row(head), _row(["---"] * len(head)), *map(_outcome_row, outcomes)]
    return "\n".join([*lines, "", *_failures(outcomes), "", *_skips(outcomes)]) + "\n"


def write(text: str, page: Path | None = None) -> None:
    """Put the table where the page has its marks.

    Raises:
        ValueError: it has none.
    """
    page = page or PAGE
    before, begins, rest = page.read_text("utf-8").partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not begins or not ends:
        raise ValueError(f"{page} must have the lines {BEGIN.strip()} and {END.strip()}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _outcome_row(one: Outcome) -> str:
    counts = (one.passed, len(one.failures), sum(one.skips.values()))
    commits = ", ".join(sorted({piece.at for piece in one.pieces.values()}))
    return _row([*(one.versions.get(name, "") for name in _COLUMNS), _tests(one.pieces), *map(str, counts), commits])


def _tests(pieces: Iterable[str]) -> str:
    """The folders that were run, and those whose slow tests were."""
    pieces = set(pieces)
    slow = {piece for piece in pieces if piece.endswith(SLOW)}
    names = ", ".join(sorted(piece.removesuffix(SLOW).rpartition("/")[2] for piece in slow))
    return "; ".join([*filter(None, [_folders(pieces - slow)]), *([f"slow: {names}"] if slow else [])])


def _folders(pieces: Iterable[str]) -> str:
    """Those that were run, or those that were not where these are few."""
    there = {folder.relative_to(ROOT).as_posix() for folder in (ROOT / "tests" / "integration").iterdir()}
    every = {"tests/unit", *(folder for folder in there if list((ROOT / folder).glob("**/test_*.py")))}
    run, left = (sorted(path.rpartition("/")[2] for path in paths) for paths in (pieces, every - set(pieces)))
    if len(left) > 3:
        return ", ".join(run)
    return f"all but {', '.join(left)}" if left else "all"


def _failures(outcomes: Iterable[Outcome]) -> list[str]:
    """One line for those tests of a file that have one explanation, in each row."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in outcomes:
        for test in one.failures:
            module, _, name = test.rpartition("::")
            found.setdefault((one.name, module, explanation(test) or "not explained yet."), []).append(name)
    if not found:
        return ["No test failed."]
    return [
        f"- {row}: `{module}::{names[0]}`{f' and {len(names) - 1} more there' if names[1:] else ''}: {why}"
        for (row, module, why), names in found.items()
    ]


def _skips(outcomes: Iterable[Outcome]) -> list[str]:
    """Other reasons, as the lack of a GPU, are no matter of versions."""
    found = [
        f"- torch {one.versions['torch']}, Lightning {one.versions['lightning']}: {count} × {reason}."
        for one in outcomes
        for reason, count in one.skips.items()
        if reason.startswith(_VERSIONED)
    ]
    return ["Skipped because a release lacks something:", "", *found] if found else []
