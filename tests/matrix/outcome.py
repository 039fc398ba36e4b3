"""What came of a run of the tests."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from tests.matrix.combinations import Combination
from tests.matrix.environment import ROOT


@dataclass(frozen=True)
class Piece:
    """What came of one folder of tests.

    Args:
        at: the commit whose code was run; empty where there is no repository.
        failures: the tests that failed, by their ids.
        skips: reason → how many.
    """

    at: str
    passed: int
    failures: list[str]
    skips: dict[str, int]


@dataclass(frozen=True)
class Outcome:
    """One row's result.

    Args:
        name: the combination's.
        versions: of Python and of what was asked for, as they were installed.
        pieces: folder → what came of its tests.
    """

    name: str
    versions: dict[str, str]
    pieces: dict[str, Piece]

    def with_earlier(self, one: Outcome | None) -> Outcome:
        """With the folders that ``one`` has besides; without, where its versions were others."""
        if one is None or one.versions != self.versions:
            return self
        return replace(self, pieces=dict(sorted({**one.pieces, **self.pieces}.items())))

    @property
    def passed(self) -> int:
        """In all folders."""
        return sum(piece.passed for piece in self.pieces.values())

    @property
    def failures(self) -> list[str]:
        """Of all folders."""
        return sorted(test for piece in self.pieces.values() for test in piece.failures)

    @property
    def skips(self) -> dict[str, int]:
        """Of all folders, reason → how many."""
        return dict(sorted(sum((Counter(piece.skips) for piece in self.pieces.values()), Counter[str]()).items()))


SLOW = " (slow)"
"""Behind the folder whose tests that are marked so were run."""


def run(
    combination: Combination, python: Path, processes: int, only: str | None = None, *, slow: bool = False
) -> Iterator[tuple[str, Piece]]:
    """Run the combination's tests, one folder after the other, each in a pytest of its own.

    Args:
        slow: those that are marked so, instead of the others.

    Raises:
        RuntimeError: pytest could not run them.
    """
    for tests in combination.tests:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            chosen = ["-k", only] if only else []
            options = [
                "-q",
                "-n",
                str(processes),
                "-m",
                "slow" if slow else "not slow",
                "-p",
                "no:cacheprovider",
                "-W",
                "ignore",
            ]
            command = [str(python), "-m", "pytest", *options, f"--junitxml={report}", *chosen, tests]
            done = subprocess.run(command, cwd=ROOT, check=False)
            if done.returncode not in (0, 1, 5):
                raise RuntimeError(f"pytest ended with {done.returncode}")
            yield f"{tests}{SLOW if slow else ''}", Piece(revision(), *read(report))


def revision() -> str:
    """The commit that is checked out, in short."""
    command = ["git", "describe", "--always", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def read(report: Path) -> tuple[int, list[str], dict[str, int]]:
    """Passed, failed and skipped, of a report in JUnit's format."""
    passed, failures, skips = 0, [], Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if skip is not None:
            skips[skip.get("message", "")] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        else:
            passed += 1
    return passed, sorted(failures), dict(sorted(skips.items()))


def installed(combination: Combination, python: Path) -> dict[str, str]:
    """The versions that are there."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:])); print(sys.version.split()[0])"
    names = list(combination.versions)
    said = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, check=True).stdout.split()
    return {"Python": said[-1], **dict(zip(names, (re.sub(r"\+.*", "", one) for one in said), strict=False))}
