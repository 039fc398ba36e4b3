"""Reads a run log back, whatever state a killed, resumed or still running training left it in."""

# pandas ships no stubs
# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning_gradwatch import arguments
from lightning_gradwatch.runlog import records
from lightning_gradwatch.runlog.lines import Lines, RunLogError, check_version
from lightning_gradwatch.runlog.records import Fields, MalformedError, Record
from lightning_gradwatch.runlog.schema import EVENTS_FILE, PROFILES_FILE, RUN_FILE, STEPS_FILE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "RunLogError", "load_run", "locate"]

_SUBFOLDER = "gradwatch"


@dataclass(frozen=True)
class Run:
    """What one training run left behind.

    Args:
        path: the folder.
        meta: what run.json says, or the header of the files where it is missing.
        profile_records, event_records, step_records: the records, every known field there (None
            where it does not apply), events of all ranks merged by step.
        skipped_lines: how many torn or malformed lines were passed over.
    """

    path: Path
    meta: dict[str, Any]
    profile_records: list[Record] = field(repr=False)
    event_records: list[Record] = field(repr=False)
    step_records: list[Record] = field(repr=False)
    skipped_lines: int = 0

    @property
    def name(self) -> str:
        """How a report calls this run: the folder, and the one around it where the
        folder's own name says nothing.
        """
        path = self.path.resolve()
        return path.parent.name if path.name == _SUBFOLDER and path.parent.name else path.name or str(path)

    @cached_property
    def profiles(self) -> pd.DataFrame:
        """One row per profile; ``total``, ``direct``, ``lagged`` hold
        lists. Needs the extra ``pandas``.
        """
        return self._frame(self.profile_records, records.PROFILE)

    @cached_property
    def events(self) -> pd.DataFrame:
        """One row per event. Needs the extra ``pandas``."""
        return self._frame(self.event_records, records.EVENT)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per optimizer step that AdaptiveClip saw. Needs the extra ``pandas``."""
        return self._frame(self.step_records, records.STEP)

    @cached_property
    def clipping(self) -> list[Record]:
        """What became of each optimizer's gradients between the backward pass and the step, as
        GradWatch found when the fit ended; empty before.
        """
        return records.entries(self.meta.get("clipping"), records.CLIPPING)

    def show(self, height: int = 800) -> None:
        """Show the report in a cell of a notebook, where its pictures are live; elsewhere write it
        into the folder and print where. Needs the extra ``report``. It takes about 5 MiB of the
        notebook's file.

        Args:
            height: of the frame, in pixels, ≥ 100.

        Raises:
            ValueError: ``height`` breaks its rule.
            ImportError: something of the extra is missing; the message says how to install it.
        """
        height = arguments.whole("height", height, "Leave it out for 800.", least=100)
        # By its name: what draws stands above what reads, and nothing here may rest on it.
        importlib.import_module("lightning_gradwatch.report.notebook").show(self, height)

    def __repr__(self) -> str:
        counts = ((self.profile_records, "profiles"), (self.event_records, "events"), (self.step_records, "steps"))
        return f"<Run {str(self.path)!r}: {', '.join(f'{len(records):,} {name}' for records, name in counts)}>"

    def _repr_html_(self) -> str:
        from lightning_gradwatch.runlog.notebook import verdict_table
        from lightning_gradwatch.runlog.summary import summarise

        verdicts = summarise(self.profile_records, self.event_records)
        return verdict_table(self.name, verdicts, [event["severity"] for event in self.event_records])

    def _frame(self, rows: list[Record], fields: tuple[Fields, Fields]) -> pd.DataFrame:
        from lightning_gradwatch.runlog.frames import to_frame

        return to_frame(rows, fields)


def load_run(path: str | Path) -> Run:
    """Read the run log in ``path``, or in ``path/gradwatch``.

    Torn lines and lines that are no record are passed over and counted. Where a run was resumed,
    the records that the resumed run wrote again supersede the earlier ones.

    Raises:
        RunLogError: ``path`` is not a folder, holds no run log, cannot be
            read, or is of a newer format.
    """
    try:
        folder = locate(Path(path))
        files = _Files(folder)
        profiles = files.read(PROFILES_FILE, records.PROFILE)
        steps = files.read(STEPS_FILE, records.STEP)
        events = files.read(EVENTS_FILE, records.EVENT)
        others = sorted(folder.glob("events.rank*.jsonl"))
        for other in others:
            events += files.read(other.name, records.EVENT)
        if others:
            events.sort(key=lambda record: record["step"])  # stable: a rank's own order stays
        meta = files.meta()
        return Run(folder, meta, profiles, events, steps, files.skipped)
    except OSError as error:
        raise RunLogError(
            f"The run log must be readable; found {str(path)!r} ({error}). Check its permissions."
        ) from error


def locate(path: Path) -> Path:
    """The folder of the run log: ``path``, or ``path/gradwatch``.

    Raises:
        RunLogError: there is none.
    """
    if not path.is_dir():
        what = "a file" if path.exists() else "nothing"
        raise RunLogError(
            f"`path` must be the folder of a run log; found {what} at {str(path)!r}. "
            f"Name the folder that holds {RUN_FILE} and {PROFILES_FILE}."
        )
    for folder in (path, path / _SUBFOLDER):
        if any((folder / name).is_file() for name in (RUN_FILE, PROFILES_FILE, EVENTS_FILE, STEPS_FILE)):
            return folder
    below = sorted(run.parent for pattern in ("*", f"*/{_SUBFOLDER}") for run in path.glob(f"{pattern}/{RUN_FILE}"))
    hint = f"Did you mean {str(below[-1])!r}?" if below else "GradWatch says where it wrote when the fit ends."
    raise RunLogError(
        f"`path` must be the folder of a run log; found neither {RUN_FILE} nor {PROFILES_FILE} in {str(path)!r}. {hint}"
    )


class _Files:
    """The files of one run log, and what was learned on the way through them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = Lines()

    @property
    def skipped(self) -> int:
        """Lines passed over so far."""
        return self._lines.skipped

    def read(self, name: str, fields: tuple[Fields, Fields]) -> list[Record]:
        """The valid records of a file that no resumed run supersedes;
        none where there is no such file.
        """
        of_kind: list[Record] = []
        path = self.folder / name
        if not path.exists():
            return of_kind
        with path.open("rb") as file:
            for line in file:
                read = self._lines.read(line, name, fields)
                if isinstance(read, int):
                    of_kind = [record for record in of_kind if record["step"] < read]
                elif read is not None:
                    of_kind.append(read)
        return of_kind

    def meta(self) -> dict[str, Any]:
        """run.json, completed by the files' header."""
        header = self._lines.header
        try:
            meta = json.loads((self.folder / RUN_FILE).read_bytes())
            known = cast("dict[str, Any]", meta) if isinstance(meta, dict) else None
        except FileNotFoundError:
            return header
        except (ValueError, RecursionError):
            known = None
        if known is None:
            self._lines.skipped += 1
            return header
        if "format_version" in known:
            try:
                check_version(known["format_version"], RUN_FILE)
            except MalformedError:
                self._lines.skipped += 1
        return {**header, **known}
