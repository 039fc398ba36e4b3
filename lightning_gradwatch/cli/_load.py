"""Finds and loads what the user named, and says on standard error what was chosen and what was
passed over."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lightning_gradwatch.plain import say
from lightning_gradwatch.runlog.reader import Run, RunLogError, load_run, locate
from lightning_gradwatch.runlog.schema import EVENTS_FILE, PROFILES_FILE, RUN_FILE, STEPS_FILE

_FILES = (RUN_FILE, PROFILES_FILE, EVENTS_FILE, STEPS_FILE)
_DEEPEST = 5  # folders below the one named: lightning_logs/version_0/gradwatch and somewhat more
_MOST_FOLDERS = 20_000  # that are looked into
_MOST_SHOWN = 5  # of the runs that were not chosen

RUN_HELP = "folder of a run log, or one above it (default: the present one); of several run logs the newest is taken"


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a run."""
    parser.add_argument("path", metavar="RUN", type=Path, nargs="?", default=Path(), help=RUN_HELP)


def load(path: Path) -> Run:
    """Read the run log in ``path``, or the newest below it; torn and malformed lines are said in
    one warning.

    Raises:
        RunLogError: it cannot be read.
    """
    run = load_run(find_run(path))
    if run.skipped_lines:
        lines = "line was" if run.skipped_lines == 1 else "lines were"
        _note(f"{run.skipped_lines} torn or malformed {lines} passed over in {str(run.path)!r}")
    return run


def find_run(path: Path) -> Path:
    """The run log in ``path``, or the newest below it, and then which one it is.

    Raises:
        RunLogError: there is none.
    """
    try:
        return locate(path)
    except RunLogError:
        runs = sorted(_runs_below(path), key=_written, reverse=True) if path.is_dir() else []
        if not runs:
            raise
    others = [str(other) for other in runs[1 : _MOST_SHOWN + 1]]
    more = [f"{len(runs) - 1 - _MOST_SHOWN} more"] if len(runs) > _MOST_SHOWN + 1 else []
    _note(
        f"reads {str(runs[0])!r}"
        + (f", the newest of {len(runs)} runs; the others are {', '.join(others + more)}" if others else "")
    )
    return runs[0]


def _runs_below(path: Path) -> Iterator[Path]:
    """The folders that hold a run log. Hidden ones are passed over, and links are not followed."""
    for number, (folder, below, files) in enumerate(os.walk(path)):
        if not set(_FILES).isdisjoint(files):
            yield Path(folder)
        deep = len(Path(folder).relative_to(path).parts) >= _DEEPEST
        below[:] = [] if deep or number > _MOST_FOLDERS else sorted(name for name in below if not name.startswith("."))


def _written(folder: Path) -> float:
    """When something was last written to a run log, in seconds since the epoch."""
    return max((file.stat().st_mtime for name in _FILES if (file := folder / name).is_file()), default=0.0)


def _note(text: str) -> None:
    say(f"gradwatch: {text}", file=sys.stderr)
