"""The one run log that the callbacks of a Trainer write together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.folder import (
    FOLDER,
    Offer,
    begin_log,
    end_log,
    key_of,
    not_writable,
    offer_of,
)
from lightning_gradwatch.plain import warn
from lightning_gradwatch.runlog.format import STATE_VERSION, check_state
from lightning_gradwatch.runlog.writer import RunLogWriter
from lightning_gradwatch.trainer.compat import Trainer, rank_zero_warn

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
    """The writer of this fit's run log, shared by all callbacks that name the same folder, or none:
    one training is one run. A collective: call it on all ranks.

    Args:
        trainer: whose fit.
        dirpath: where; None is the folder that another callback names, or
            ``<trainer.log_dir or default_root_dir>/gradwatch`` where none does.
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
    dirpath = _named(trainer, dirpath)
    key = key_of(dirpath)
    held = logs.get(key)
    log_dir = trainer.log_dir  # a collective
    base = Path(dirpath) if dirpath is not None else Path(log_dir or trainer.default_root_dir) / FOLDER
    offer = Offer(None, None, None)
    if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
        offer = (
            Offer(held[0].folder, None, held[2])
            if held
            else offer_of(base, run_id, None if dirpath is not None or last is None else Path(last))
        )
    # Rank 0 decides, at every call: a rank whose callback failed has let go of a log that the
    # others still hold, and a rank that took a shortcut here would leave the others waiting.
    offer = trainer.strategy.broadcast(offer)
    if offer.problem is not None:
        message = not_writable(base, offer.problem)
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
    resumed = trainer.global_step if trainer.global_step > 0 else None
    writer = begin_log(offer.folder, offer.run_id, rank=trainer.global_rank, resumed_at_step=resumed)
    logs[key] = (writer, {id(owner)}, offer.run_id)
    return writer


def run_id_of(trainer: Trainer, dirpath: str | Path | None) -> str | None:
    """The identity of the open run log, to be kept in a checkpoint."""
    entry = _open.get(trainer, {}).get(key_of(_named(trainer, dirpath)))
    return entry[2] if entry else None


def _named(trainer: Trainer, dirpath: str | Path | None) -> str | Path | None:
    """The folder that a callback asks for by name, or the first one that another asks for."""
    if dirpath is not None:
        return dirpath
    return next((one.dirpath for one in _writers(trainer) if one.dirpath is not None), None)


def identity(run_id: str | None, run_dir: Path | None) -> dict[str, str | None]:
    """What a checkpoint keeps of a run log, for ``run_id`` and ``last`` of :func:`open_run_log`,
    and in which version of the format.
    """
    return {
        "format_version": STATE_VERSION,
        "run_id": run_id,
        "run_dir": None if run_dir is None else os.path.abspath(run_dir),
    }


def continued(state: dict[str, Any], owner: str) -> dict[str, Any]:
    """What a checkpoint says of a run log; nothing, and a warning, where a newer version of the
    package wrote it.
    """
    try:
        check_state(state, owner)
    except ValueError as error:
        rank_zero_warn(f"{error} A new run log is begun.")
        return {}
    return state


def close_run_log(trainer: Trainer, *, owner: object) -> None:
    """Let go of the run log; the last owner closes its files. Calling it again does nothing."""
    logs = _open.get(trainer, {})
    for key, (writer, owners, _) in list(logs.items()):
        owners.discard(id(owner))
        if not owners:
            end_log(writer)
            del logs[key]


def told_by_others(trainer: Trainer, owner: object, run_dir: Path | None) -> list[Event]:
    """The events of the other callbacks that write into the same run log: a
    verdict rests on all that is in it.
    """
    others = [one for one in _writers(trainer) if one is not owner and one.run_dir == run_dir]
    return [event for one in others for event in one.events]


@runtime_checkable
class _Writer(Protocol):
    """A callback that writes a run log."""

    dirpath: str | Path | None

    @property
    def run_dir(self) -> Path | None: ...

    @property
    def events(self) -> list[Event]: ...


def _writers(trainer: Trainer) -> Iterator[_Writer]:
    callbacks: list[object] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
    return (one for one in callbacks if isinstance(one, _Writer))
