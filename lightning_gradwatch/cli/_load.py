"""Loads what the user named, and says on standard error what was passed over."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_gradwatch.runlog.reader import Run, load_run


def load(path: Path) -> Run:
    """Read the run log in ``path``; torn and malformed lines are said in one warning.

    Raises:
        RunLogError: it cannot be read.
    """
    run = load_run(path)
    if run.skipped_lines:
        lines = "line was" if run.skipped_lines == 1 else "lines were"
        print(
            f"gradwatch: {run.skipped_lines} torn or malformed {lines} passed over in {str(run.path)!r}",
            file=sys.stderr,
        )
    return run
