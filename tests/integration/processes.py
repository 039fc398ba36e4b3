"""Starts the scripts of this folder in processes of their own, and lets none hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: object, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python arguments…`` from the repository's root; a run that hangs fails, and takes its ranks with it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GRADWATCH", "PYTEST"))}
    process = subprocess.Popen(
        [sys.executable, *(str(argument) for argument in arguments)],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as hung:
        for pid in _family(process.pid):
            os.kill(pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"hung for {seconds} s: {' '.join(map(str, arguments))}\n{out}\n{err}") from hung
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _family(pid: int) -> list[int]:
    """A process and all that it started: launchers put their ranks into groups of their own."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    children = listed.read_text().split() if listed.exists() else []
    return [pid, *(member for child in children for member in _family(int(child)))]


def succeed(*arguments: object, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """As :func:`run`; the exit status must be 0."""
    done = run(*arguments, seconds=seconds, **environment)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done
