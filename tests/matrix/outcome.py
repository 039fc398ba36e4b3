"""What came of a run of the tests."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from tests.matrix.combinations import Combination
from tests.matrix.environment import ROOT


@dataclass(frozen=True)
class Outcome:
    """One row's result.

    Args:
        name: the combination's.
        versions: of Python and of what was asked for, as they were installed.
        tests: what was run.
        failures: the tests that failed, by their ids.
        skips: reason → how many.
    """

    name: str
    versions: dict[str, str]
    tests: list[str]
    passed: int
    failures: list[str]
    skips: dict[str, int]

    def with_earlier(self, one: Outcome | None) -> Outcome:
        """Both together, where ``one`` is of other tests and of the same versions; else this one alone."""
        if one is None or one.versions != self.versions or set(one.tests) & set(self.tests):
            return self
        return replace(
            self,
            tests=[*one.tests, *self.tests],
            passed=one.passed + self.passed,
            failures=sorted([*one.failures, *self.failures]),
            skips=dict(sorted((Counter(one.skips) + Counter(self.skips)).items())),
        )


def run(combination: Combination, python: Path, processes: int, only: str | None = None) -> Outcome:
    """Run the combination's tests.

    Raises:
        RuntimeError: pytest could not run them.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = ["-k", only] if only else []
        options = ["-q", "-n", str(processes), "-m", "not slow", "-p", "no:cacheprovider", "-W", "ignore"]
        command = [str(python), "-m", "pytest", *options, f"--junitxml={report}", *chosen, *combination.tests]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with {done.returncode}")
        passed, failures, skips = read(report)
    return Outcome(combination.name, installed(combination, python), list(combination.tests), passed, failures, skips)


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
