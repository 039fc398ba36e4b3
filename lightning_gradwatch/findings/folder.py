"""The folder of a run log: chosen, opened, ended."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from lightning_gradwatch.runlog.writer import RunLogWriter, choose_folder, read_meta

FOLDER = "gradwatch"


class Offer(NamedTuple):
    """What rank 0 tells the others: the folder, or why there is none, and the run's identity."""

    folder: Path | None
    problem: str | None
    run_id: str | None


def offer_of(base: Path, run_id: str | None = None, last: Path | None = None) -> Offer:
    """The folder that a run may write to, as ``choose_folder`` finds it, seen to be writable."""
    try:
        folder = choose_folder(base, run_id=run_id, last=last)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Offer(None, str(error), None)
    return Offer(folder, None, (read_meta(folder) or {}).get("run_id") or run_id)


def not_writable(base: Path, problem: str) -> str:
    """What is said of a folder that cannot be written."""
    return f"`dirpath` must be a folder that can be written; found {str(base)!r} ({problem}). Name another one."


def begin_log(folder: Path, run_id: str, *, rank: int, resumed_at_step: int | None = None) -> RunLogWriter:
    """A writer to a folder that was chosen."""
    about = {"run_id": run_id, "versions": versions()}
    writer = RunLogWriter(folder, header=about, rank=rank, resumed_at_step=resumed_at_step)
    writer.meta({**about, "ended": None})
    return writer


def end_log(writer: RunLogWriter) -> None:
    """The run is over: close its files."""
    writer.meta({"ended": time.time()})
    writer.close()


def key_of(dirpath: str | Path | None) -> str | None:
    """The same for one folder, however it is written."""
    return None if dirpath is None else os.path.realpath(dirpath)


def versions() -> dict[str, Any]:
    """Versions that a reader needs to make sense of a record, or to repeat the run."""
    numbers: dict[str, Any] = {"python": platform.python_version()}
    for name in ("lightning-gradwatch", "torch", "lightning", "pytorch-lightning", "torchmetrics"):
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            continue
    return numbers
