"""Writes a run log so that whatever stops the process, all but the last line can be read."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from lightning_gradwatch.events import Event
from lightning_gradwatch.plain import warn
from lightning_gradwatch.runlog.format import is_newer
from lightning_gradwatch.runlog.records import MalformedError
from lightning_gradwatch.runlog.schema import (
    FORMAT_VERSION,
    HEADER_KEY,
    PROFILES_FILE,
    RUN_FILE,
    STEPS_FILE,
    ProfileRecord,
    StepRecord,
    events_file,
    to_json,
)


class RunLogWriter:
    """Appends the records of one training run to a folder: one record a line,
    flushed at once, no locks, no mmap.

    A write that fails (disk full, folder gone) is said in one warning and ends the log, never the
    training: ``failed`` is then true. A copy (``copy.deepcopy``, pickle) writes nothing, so that
    two writers never share a file.

    Args:
        folder: where; created where it is missing.
        header: what the first line of each file says besides the format version.
        rank: only rank 0 writes profiles, steps and run.json; the others write their own events.
        resumed_at_step: optimizer steps done when a resumed run began; it supersedes
            earlier records from there on.
    """

    def __init__(
        self, folder: Path, *, header: Mapping[str, Any], rank: int = 0, resumed_at_step: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.failed = False
        self._closed = False
        self._rank = rank
        self._header: dict[str, Any] = {HEADER_KEY: True, "format_version": FORMAT_VERSION, **header}
        self._files: dict[str, BinaryIO] = {}
        self._meta: dict[str, Any] | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if resumed_at_step is not None:
                self._header["resumed_at_step"] = resumed_at_step
                self._mark_resumption()
        except OSError as error:
            self._fail(error)

    @property
    def run_id(self) -> str | None:
        """Of the run, the same on every rank; None where the header names none."""
        return self._header.get("run_id")

    def profile(self, record: ProfileRecord) -> None:
        """Append one profile (rank 0; elsewhere nothing happens)."""
        if self._rank == 0:
            self._append(PROFILES_FILE, record)

    def event(self, event: Event) -> None:
        """Append one event to this rank's file."""
        self._append(events_file(self._rank), event.to_record())

    def step(self, record: StepRecord) -> None:
        """Append one optimizer step (rank 0; elsewhere nothing happens)."""
        if self._rank == 0:
            self._append(STEPS_FILE, record)

    def meta(self, mapping: Mapping[str, Any]) -> None:
        """Merge ``mapping`` into run.json, mapping by mapping, and replace
        the file in one move (rank 0).
        """
        if self._rank != 0 or self.failed or self._closed:
            return
        path = self.folder / RUN_FILE
        if self._meta is None:
            self._meta = read_meta(self.folder) or {}
        _merge(self._meta, {"format_version": FORMAT_VERSION, **mapping})
        temporary = path.with_name(f".{RUN_FILE}.{os.getpid()}")
        try:
            temporary.write_bytes(_encode(self._meta, indent=2))
            os.replace(temporary, path)
        except (OSError, ValueError, TypeError) as error:
            self._fail(error)

    def close(self) -> None:
        """Close the files; what comes after is dropped. Calling it again does nothing."""
        self._closed = True
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                self._fail(error)
        self._files.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_closed": True}

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if self.failed or self._closed:
            return
        try:
            file = self._files.get(name) or self._open(name)
            file.write(_encode(record))
            file.flush()
        except (OSError, ValueError, TypeError) as error:
            self._fail(error)

    def _open(self, name: str) -> BinaryIO:
        file = (self.folder / name).open("ab+")
        self._files[name] = file
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the last run was killed within a line: keep its remains off ours
                file.write(b"\n")
        file.write(_encode(self._header))
        file.flush()
        return file

    def _mark_resumption(self) -> None:
        """Open at once the files that exist: they must say that they are
        superseded even if nothing more comes.
        """
        mine = [events_file(self._rank)] + ([PROFILES_FILE, STEPS_FILE] if self._rank == 0 else [])
        for name in mine:
            if (self.folder / name).exists():
                self._open(name)

    def _fail(self, error: Exception) -> None:
        if not self.failed:
            self.failed = True
            warn(
                f"The run log in {str(self.folder)!r} cannot be written ({type(error).__name__}: {error}); "
                "training goes on, and nothing more is logged there. Free the disk or name another folder.",
                stacklevel=3,
            )
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # what could not be flushed is lost either way
                continue
        self._files.clear()


def choose_folder(base: Path, *, run_id: str | None, last: Path | None = None) -> Path:
    """The folder that a run may write to: a free one, which is then its own, or
    the one that it wrote to before.

    A free one is claimed by its run.json, which of several processes only one can make: two that
    start at the same moment never share a folder.

    Args:
        base: the folder wished for; where another run's records lie in it,
            ``base-1``, ``base-2`` … are tried.
        run_id: of the run that is resumed; the folder whose run.json has it
            is continued. None is a new one.
        last: the folder that it wrote to, looked at first; another one's, or one
            that has gone, is passed over.

    Raises:
        OSError: ``base`` is a file, or cannot be looked into, or written to.
    """
    if last is not None and _is_of(last, run_id) and os.access(last, os.W_OK):
        return last
    if base.exists() and not base.is_dir():
        raise NotADirectoryError(f"{str(base)!r} is a file, not a folder")
    if not base.name or base.name == "..":  # `.` and `..` have no name that a number could follow
        base = Path(os.path.abspath(base))
    if run_id is not None:
        numbered = sorted(base.parent.glob(f"{_literal(base.name)}-*")) if base.parent.is_dir() else []
        for candidate in (base, *numbered):
            if _is_of(candidate, run_id):
                return candidate
    number, candidate = 0, base
    while not _claim(candidate, run_id or uuid.uuid4().hex):
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where there is none or it cannot be read."""
    try:
        meta = json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):  # a wrong encoding is a ValueError too
        return None
    return cast("dict[str, Any]", meta) if isinstance(meta, dict) else None


def _is_of(folder: Path, run_id: str | None) -> bool:
    """Whether it is that run's, in a format that we can go on with."""
    meta = read_meta(folder) if run_id is not None else None
    try:
        return (
            meta is not None
            and meta.get("run_id") == run_id
            and not is_newer(meta.get("format_version", FORMAT_VERSION), FORMAT_VERSION)
        )
    except MalformedError:
        return False


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _claim(folder: Path, run_id: str) -> bool:
    """Take a folder that is absent or empty; false where another run has it, or was quicker."""
    if not _is_free(folder):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / RUN_FILE).open("xb") as file:
            file.write(_encode({"format_version": FORMAT_VERSION, "run_id": run_id}, indent=2))
    except FileExistsError:
        return False
    return True


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        held = into.get(key)
        if isinstance(held, dict) and isinstance(value, Mapping):
            _merge(cast("dict[str, Any]", held), cast("Mapping[str, Any]", value))
        else:
            into[key] = to_json(value)


def _encode(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    separators = (",", ":") if indent is None else None
    text = json.dumps(to_json(record), allow_nan=False, indent=indent, separators=separators, default=_plain)
    return text.encode("ascii") + b"\n"


def _plain(value: Any) -> Any:
    """Arrays and scalars of other libraries as lists and numbers; everything
    else, as in a config, by its text.
    """
    return to_json(value.tolist()) if hasattr(value, "tolist") else str(value)
