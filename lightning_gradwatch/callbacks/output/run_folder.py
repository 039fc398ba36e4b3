"""The one run log that the callbacks of a Trainer write together."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from lightning_gradwatch.plain import warn
from lightning_gradwatch.runlog.writer import RunLogWriter, choose_folder, read_meta
from lightning_gradwatch.trainer.compat import Trainer

FOLDER = "gradwatch"

_open: WeakKeyDictionary[Trainer, dict[str | None, tuple[RunLogWriter, set[int], str]]] = WeakKeyDictionary()

_refused: WeakKeyDictionary[Trainer, set[Path]] = WeakKeyDictionary()
"""Folders that cannot be written, as their users have been told."""


def open_run_log(
    trainer: Trainer,
    dirpath: str | Path | None,
    *,
    owner: object,
    run_id: str | None = None,
    last: str | Path | None = None,
) -> RunLogWriter | None:
    """The writer of this fit's run log, shared by all callbacks that name the same folder. A
    collective: call it on all ranks.

    Args:
        trainer: whose fit.
        dirpath: where; None is ``<trainer.log_dir or default_root_dir>/gradwatch``.
        owner: the callback; the log is closed when its last owner closes it.
        run_id: of the run that is resumed, whose folder is then continued.
        last: that folder; with a logger that makes a new folder for each version, it lies elsewhere
            than the default. A ``dirpath`` counts more.

    Returns:
        The writer, or None where nothing can or should be written (``fast_dev_run``; an unwritable
        default folder, said in a warning).

    Raises:
        ValueError: a folder that was asked for by name cannot be written.
    """
    logs = _open.setdefault(trainer, {})
    key = _key(dirpath)
    held = logs.get(key)
    log_dir = trainer.log_dir  # a collective
    base = Path(dirpath) if dirpath is not None else Path(log_dir or trainer.default_root_dir) / FOLDER
    offer = _Offer(None, None, None)
    if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
        offer = (
            _Offer(held[0].folder, None, held[2])
            if held
            else _choose(base, run_id, None if dirpath is not None or last is None else Path(last))
        )
    # Rank 0 decides, at every call: a rank whose callback failed has let go of a log that the
    # others still hold, and a rank that took a shortcut here would leave the others waiting.
    offer = trainer.strategy.broadcast(offer)
    if offer.problem is not None:
        message = (
            f"`dirpath` must be a folder that can be written; found {str(base)!r} ({offer.problem}). Name another one."
        )
        if dirpath is not None:
            raise ValueError(message)
        if base not in _refused.setdefault(trainer, set()):  # the callbacks of one Trainer ask one after the other
            _refused[trainer].add(base)
            warn(f"No run log is written: {message}", stacklevel=2)
    if offer.folder is None or offer.run_id is None:
        return None
    if held is not None and held[0].folder == offer.folder:
        held[1].add(id(owner))
        return held[0]
    about = {"run_id": offer.run_id, "versions": versions()}
    resumed = trainer.global_step if trainer.global_step > 0 else None
    writer = RunLogWriter(offer.folder, header=about, rank=trainer.global_rank, resumed_at_step=resumed)
    writer.meta({**about, "ended": None})
    logs[key] = (writer, {id(owner)}, offer.run_id)
    return writer


class _Offer(NamedTuple):
    """What rank 0 tells the others: the folder, or why there is none, and the run's identity."""

    folder: Path | None
    problem: str | None
    run_id: str | None


def _choose(base: Path, run_id: str | None, last: Path | None) -> _Offer:
    try:
        folder = choose_folder(base, run_id=run_id, last=last)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return _Offer(None, str(error), None)
    return _Offer(folder, None, (read_meta(folder) or {}).get("run_id") or run_id)


def _key(dirpath: str | Path | None) -> str | None:
    """The same for one folder, however it is written."""
    return None if dirpath is None else os.path.realpath(dirpath)


def run_id_of(trainer: Trainer, dirpath: str | Path | None) -> str | None:
    """The identity of the open run log, to be kept in a checkpoint."""
    entry = _open.get(trainer, {}).get(_key(dirpath))
    return entry[2] if entry else None


def identity(run_id: str | None, run_dir: Path | None) -> dict[str, str | None]:
    """What a checkpoint keeps of a run log, for ``run_id`` and ``last`` of :func:`open_run_log`."""
    return {"run_id": run_id, "run_dir": None if run_dir is None else os.path.abspath(run_dir)}


def close_run_log(trainer: Trainer, *, owner: object) -> None:
    """Let go of the run log; the last owner closes its files. Calling it again does nothing."""
    logs = _open.get(trainer, {})
    for key, (writer, owners, _) in list(logs.items()):
        owners.discard(id(owner))
        if not owners:
            writer.meta({"ended": time.time()})
            writer.close()
            del logs[key]


def versions() -> dict[str, Any]:
    """Versions that a reader needs to make sense of a record, or to repeat the run."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in ("lightning-gradwatch", "torch", "lightning", "pytorch-lightning", "torchmetrics"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
