"""Follows a run log while another process writes it: reads only what was appended, locks
nothing, keeps only what is recent.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_gradwatch.events import closes_episode
from lightning_gradwatch.runlog import records
from lightning_gradwatch.runlog.lines import Lines
from lightning_gradwatch.runlog.reader import Run, RunLogError, locate
from lightning_gradwatch.runlog.recent import RecentProfiles
from lightning_gradwatch.runlog.records import Fields, Record
from lightning_gradwatch.runlog.schema import EVENTS_FILE, PROFILES_FILE, STEPS_FILE
from lightning_gradwatch.runlog.writer import read_meta

_EVENTS = 100
_STEPS = 400
_CHUNK = 1 << 20


class Tail:
    """The lines that were appended to one file since the last look. The file
    may appear later, or be replaced.

    A last line without its end is not yet there: it may still be being written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        self._rest = b""
        self._file: tuple[int, int] | None = None
        self.written: float | None = None  # seconds since the epoch

    def poll(self, take: Callable[[bytes], None], restart: Callable[[], None]) -> bool:
        """Hand each new line to ``take``; call ``restart`` first where it is
        another file than at the last look.

        Returns:
            Whether anything was new.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            status = os.fstat(file.fileno())
            self.written = status.st_mtime
            identity = (status.st_dev, status.st_ino)
            if self._file is not None and (identity != self._file or status.st_size < self._at):
                self._at, self._rest = 0, b""
                restart()
            self._file = identity
            if status.st_size == self._at:
                return False
            file.seek(self._at)
            while chunk := file.read(_CHUNK):
                self._at += len(chunk)
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    take(line)
        return True


class Follower:
    """The present state of a run log, brought up to date by :meth:`poll` at
    the cost of what was appended.

    Args:
        path: the folder, or the one around it. It may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder: Path | None = None
        self._files: dict[str, _File] = {}
        self._lines = Lines()

    def poll(self) -> bool:
        """Read what was appended; whether anything was.

        Raises:
            RunLogError: it cannot be read, or is of a newer format.
        """
        if self._folder is None:
            if self.path.exists() and not self.path.is_dir():
                locate(self.path)  # which says what is wrong
            try:
                self._folder = locate(self.path)
            except RunLogError:  # not there yet
                return False
        try:
            others = sorted(path.name for path in self._folder.glob("events.rank*.jsonl"))
            for name in (PROFILES_FILE, STEPS_FILE, EVENTS_FILE, *others):
                if name not in self._files:
                    self._files[name] = _File(self._folder / name, self._lines)
            news = [file.poll() for file in self._files.values()]  # all of them, not only up to the first with news
            return any(news)
        except OSError as error:
            raise RunLogError(
                f"The run log must be readable; found {str(self.path)!r} ({error}). Check its permissions."
            ) from error

    @property
    def has_run(self) -> bool:
        """Whether there is a run log by now."""
        return self._folder is not None

    @property
    def ended(self) -> float | None:
        """When the fit ended, in seconds since the epoch; None while it
        goes on, and where it was killed.
        """
        ended = ((read_meta(self._folder) if self._folder is not None else None) or {}).get("ended")
        return float(ended) if isinstance(ended, (int, float)) else None

    @property
    def written(self) -> float | None:
        """When the last record was written, in seconds since the epoch."""
        return max((at for file in self._files.values() if (at := file.tail.written) is not None), default=None)

    @property
    def events(self) -> dict[str, int]:
        """How many events of each severity there are, those included that are no longer kept."""
        counts: dict[str, int] = {}
        for file in self._files.values():
            for severity, steps in file.severities.items():
                counts[severity] = counts.get(severity, 0) + len(steps)
        return counts

    def run(self) -> Run:
        """The recent records: of each gradient the last sampled steps, the last
        optimizer steps, the last events.
        """
        files = self._files
        events = [e for name, file in files.items() if name.startswith("events") for e in file.recent]
        return Run(
            self._folder or self.path,
            dict(self._lines.header),
            files[PROFILES_FILE].profiles.records() if PROFILES_FILE in files else [],
            sorted(events, key=lambda event: event["step"])[-_EVENTS:],
            list(files[STEPS_FILE].recent) if STEPS_FILE in files else [],
            self._lines.skipped,
        )


class _File:
    """What is kept of one file."""

    def __init__(self, path: Path, lines: Lines) -> None:
        self.fields: tuple[Fields, Fields] = records.EVENT
        most = _EVENTS
        if path.name == PROFILES_FILE:
            self.fields = records.PROFILE
        elif path.name == STEPS_FILE:
            self.fields, most = records.STEP, _STEPS
        self.tail = Tail(path)
        self.recent: deque[Record] = deque(maxlen=most)
        self.severities: dict[str, array[int]] = {}  # steps of the events: a resumed run takes some back
        self.profiles = RecentProfiles()
        self._lines = lines

    def poll(self) -> bool:
        return self.tail.poll(self._take, lambda: self._forget(0))

    def _take(self, line: bytes) -> None:
        read = self._lines.read(line, self.tail.path.name, self.fields)
        if isinstance(read, int):
            self._forget(read)
        elif read is None:
            return
        elif self.fields is records.PROFILE:
            self.profiles.add(read)
        else:
            self.recent.append(read)
            if self.fields is records.EVENT and not closes_episode(read):
                self.severities.setdefault(_severity(read), array("q")).append(read["step"])

    def _forget(self, step: int) -> None:
        """A resumed run supersedes what was recorded from ``step`` on."""
        self.profiles.forget(step)
        kept = [record for record in self.recent if record["step"] < step]
        self.recent.clear()
        self.recent.extend(kept)
        for severity, steps in self.severities.items():
            self.severities[severity] = array("q", (at for at in steps if at < step))


def _severity(event: dict[str, Any]) -> str:
    return event["severity"] or ""
