"""The matrix of versions: what it reads, and what it writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.matrix import environment, known, outcome, table
from tests.matrix.combinations import COMBINATIONS
from tests.project import PROJECT, declared

PROGRAM = """
import pytest

def test_right():
    pass

def test_wrong():
    assert 0

@pytest.mark.skip(reason="PyTorch before 2.3 lacks it")
def test_old():
    pass

@pytest.fixture
def broken():
    raise OSError

def test_without_its_fixture(broken):
    pass
"""

ONE = outcome.Outcome(
    "lowest",
    {"Python": "3.10.1", "torch": "2.2.0", "lightning": "2.1.1", "torchmetrics": "1.0.0", "numpy": "1.26.0"},
    {
        "tests/integration/exact": outcome.Piece("abc", 2, [], {"PyTorch before 2.3 lacks it": 2}),
        "tests/unit": outcome.Piece("abd", 3, ["tests.unit.test_a::test_wrong"], {"there is no CUDA device": 3}),
    },
)


def test_what_pytest_reports_is_read(tmp_path: Path) -> None:
    """Errors in a fixture are failures; skips are counted by their reason."""
    (tmp_path / "test_it.py").write_text(PROGRAM)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--junitxml=report.xml"]
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    subprocess.run([sys.executable, "-m", "pytest", *options], cwd=tmp_path, check=False, capture_output=True, env=env)
    passed, failures, skips = outcome.read(tmp_path / "report.xml")
    assert passed == 1
    assert failures == ["test_it::test_without_its_fixture", "test_it::test_wrong"]
    assert skips == {"PyTorch before 2.3 lacks it": 1}


def test_the_table_names_each_failure_and_its_explanation(monkeypatch) -> None:
    """One without an explanation is called so; what is skipped for want of a GPU is no matter of versions."""
    text = table.markdown([ONE])
    assert "| 3.10.1 | 2.2.0 | 2.1.1 | 1.0.0 | 1.26.0 | exact, unit | 5 | 1 | 5 | abc, abd |" in text
    assert "- lowest: `tests.unit.test_a::test_wrong`: not explained yet." in text
    assert "2 × PyTorch before 2.3 lacks it" in text
    assert "CUDA" not in text
    monkeypatch.setattr(known, "KNOWN", ((r"tests\.unit\.test_a", "it is known why"),))
    more = outcome.Piece("abd", 0, [f"tests.unit.test_a::test_{n}" for n in range(3)], {})
    text = table.markdown([replace(ONE, pieces={**ONE.pieces, "tests/integration/clean": more})])
    assert "- lowest: `tests.unit.test_a::test_0` and 3 more there: it is known why" in text


def test_results_come_back(tmp_path: Path) -> None:
    """Those of a combination that is no more are dropped."""
    path = tmp_path / "results.json"
    gone = outcome.Outcome("gone", {}, {})
    table.store([gone, ONE], path)
    assert table.load(path) == {"lowest": ONE}
    assert table.load(tmp_path / "none.json") == {}


def test_a_row_is_run_piece_by_piece(monkeypatch, tmp_path: Path) -> None:
    """Other folders with the same versions are added, the same folder takes the place of what was there; other versions begin anew."""
    new = {"tests/integration/neutral": outcome.Piece("abe", 7, [], {"there is no CUDA device": 1})}
    again = {"tests/unit": outcome.Piece("abe", 4, [], {})}
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    table.PAGE.write_text(f"before\n{table.BEGIN}{table.END}after\n")
    for pieces in (ONE.pieces, new, again):
        table.put(replace(ONE, pieces=pieces))
    (row,) = table.load().values()
    assert row == replace(ONE, pieces={**ONE.pieces, **new, **again})
    assert (row.passed, row.failures, row.skips) == (
        13,
        [],
        {"PyTorch before 2.3 lacks it": 2, "there is no CUDA device": 1},
    )
    assert "| exact, neutral, unit | 13 | 0 | 3 | abc, abe |" in table.PAGE.read_text()
    others = replace(ONE, versions={**ONE.versions, "torch": "2.3.0"}, pieces=new)
    table.put(others)
    assert table.load() == {ONE.name: others}


def test_a_row_of_nearly_all_folders_names_what_is_left_out() -> None:
    """One of all says so."""
    folders = {f"tests/integration/{p.parent.name}" for p in environment.ROOT.glob("tests/integration/*/test_*.py")}
    pieces = dict.fromkeys({"tests/unit", *folders}, outcome.Piece("abc", 1, [], {}))
    assert "| 1.26.0 | all | " in table.markdown([replace(ONE, pieces=pieces)])
    del pieces["tests/integration/shown"], pieces["tests/unit"]
    assert "| 1.26.0 | all but shown, unit | " in table.markdown([replace(ONE, pieces=pieces)])


def test_slow_tests_stand_apart(monkeypatch, tmp_path: Path) -> None:
    """They are those that are marked so, and no folder is taken for run because they were."""
    tests = tmp_path / "test_it.py"
    tests.write_text(f"import pytest\n{PROGRAM}\n@pytest.mark.slow\ndef test_at_length():\n    pass\n")
    combination = replace(COMBINATIONS[0], tests=(str(tests),))
    monkeypatch.setattr(outcome, "ROOT", tmp_path)
    found = dict(outcome.run(combination, Path(sys.executable), processes=0, slow=True))
    assert {name: piece.passed for name, piece in found.items()} == {f"{tests}{outcome.SLOW}": 1}
    both = {**ONE.pieces, f"tests/integration/clean{outcome.SLOW}": outcome.Piece("abc", 1, [], {})}
    assert "| exact, unit; slow: clean | 6 | " in table.markdown([replace(ONE, pieces=both)])


def test_each_folder_is_run_by_itself(monkeypatch, tmp_path: Path) -> None:
    """With its own counts, and the commit that was checked out."""
    tests = tmp_path / "test_it.py"
    tests.write_text(PROGRAM)
    combination = replace(COMBINATIONS[0], tests=(f"{tests}::test_right", f"{tests}::test_wrong"))
    monkeypatch.setattr(outcome, "ROOT", tmp_path)
    found = dict(outcome.run(combination, Path(sys.executable), processes=0))
    assert [(piece.passed, len(piece.failures), piece.at) for piece in found.values()] == [(1, 0, ""), (0, 1, "")]
    assert list(found) == list(combination.tests)


def test_the_page_has_the_table_of_the_results() -> None:
    """No figure in it is typed."""
    _, _, rest = table.PAGE.read_text("utf-8").partition(table.BEGIN)
    assert rest.partition(table.END)[0].strip() == table.markdown(table.load().values()).strip()


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    """It is left as it is."""
    page = tmp_path / "page.md"
    page.write_text("a page")
    with pytest.raises(ValueError, match="begin"):
        table.write("a table", page)
    assert page.read_text() == "a page"


def test_the_lowest_row_is_what_the_bounds_say() -> None:
    """Of all that the core and the extras of users require, and of Python; the Makefile's Lightning is that, too."""
    lowest = next(one for one in COMBINATIONS if one.name == "lowest")
    bounds = {**declared("report", "lightning"), "Python": Requirement(f"Python{PROJECT['requires-python']}")}
    lows = {
        name: next(one.version for one in bound.specifier if one.operator == ">=") for name, bound in bounds.items()
    }
    rows = {"Python": lowest.python, **lowest.versions}
    assert {name: Version(rows[name]).release[: len(Version(low).release)] for name, low in lows.items()} == {
        name: Version(low).release for name, low in lows.items()
    }
    named = re.findall(r"(?<= )([a-z-]+)==([0-9.]+)", (environment.ROOT / "Makefile").read_text("utf-8"))
    assert {"lightning", "pytorch-lightning"} <= {name for name, _ in named}
    assert all(rows[name] == version for name, version in named)


def test_an_interpreter_that_is_not_there() -> None:
    """Its row is left out."""
    assert environment.interpreter("2.0") is None
    assert environment.interpreter(f"3.{sys.version_info.minor}") is not None
