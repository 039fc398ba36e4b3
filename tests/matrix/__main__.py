"""``python -m tests.matrix [NAME …]``: run the tests in an environment of each combination."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.matrix import environment, outcome, table
from tests.matrix.combinations import COMBINATIONS, Combination
from tests.matrix.known import explanation


def main() -> int:
    """0 where nothing failed that has no explanation."""
    given = _arguments()
    chosen = [one for one in COMBINATIONS if one.name in given.names]
    outcomes = [done for combination in chosen if (done := _run(combination, given)) is not None]
    print(table.markdown(outcomes))
    return int(any(explanation(test) is None for one in outcomes for test in one.failures))


def _arguments() -> argparse.Namespace:
    names = [one.name for one in COMBINATIONS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=names, help=f"of: {', '.join(names)}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gradwatch-matrix")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="run these; what the table has of others stays")
    parser.add_argument("--keep", action="store_true", help="leave the environments; one of an old torch has 6 GB")
    parser.add_argument("--again", action="store_true", help="use the environments that an earlier run has left")
    parser.add_argument("--write", action="store_true", help="put the results into the documentation")
    parser.add_argument("--slow", action="store_true", help="run the tests that are marked slow instead of the others")
    parser.add_argument("-k", dest="only", help="as pytest's")
    given = parser.parse_args()
    unknown = set(given.names) - set(names)
    if unknown:
        parser.error(f"there is no combination {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if given.write and given.only:
        parser.error("-k with --write would show a part of the tests as the whole")
    return given


def _run(combination: Combination, given: argparse.Namespace) -> outcome.Outcome | None:
    python = environment.interpreter(combination.python)
    if python is None:
        print(f"{combination.name}: there is no Python {combination.python} here; left out", file=sys.stderr)
        return None
    if given.tests:
        combination = dataclasses.replace(combination, tests=tuple(given.tests))
    print(f"{combination.name}: {combination.versions}", flush=True)
    try:
        there = given.again and environment.kept(combination, given.folder)
        own = there or environment.make(combination, python, given.folder)
        return _run_in(own, combination, given)
    except subprocess.CalledProcessError as error:
        print(f"{combination.name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    finally:
        if not given.keep:
            shutil.rmtree(given.folder / combination.name, ignore_errors=True)


def _run_in(python: Path, combination: Combination, given: argparse.Namespace) -> outcome.Outcome:
    """Each folder's result is written when it is there, so that a run that is stopped has written the others."""
    done = outcome.Outcome(combination.name, outcome.installed(combination, python), {})
    for tests, piece in outcome.run(combination, python, given.processes, given.only, slow=given.slow):
        done = dataclasses.replace(done, pieces={**done.pieces, tests: piece})
        if given.write:
            table.put(done)
    return done


if __name__ == "__main__":
    sys.exit(main())
