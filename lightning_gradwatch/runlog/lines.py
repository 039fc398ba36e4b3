"""What one line of a run log's file is: a header, a record, or damage.
Every reader judges lines here.
"""

from __future__ import annotations

import json
from typing import Any, cast

from lightning_gradwatch.runlog import records
from lightning_gradwatch.runlog.format import UPGRADE, is_newer
from lightning_gradwatch.runlog.records import Fields, MalformedError, Record
from lightning_gradwatch.runlog.schema import FORMAT_VERSION, HEADER_KEY


class RunLogError(ValueError):
    """A run log cannot be read; the message says which rule is broken and what to do."""


class Lines:
    """Reads lines, and keeps what was learned on the way.

    Attributes:
        skipped: torn or malformed lines passed over so far.
        header: what the headers said besides the format version.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.header: dict[str, Any] = {}

    def read(self, line: bytes, name: str, fields: tuple[Fields, Fields]) -> Record | int | None:
        """The record that ``line`` of the file ``name`` holds; of a header the step at which a run
        was resumed, which supersedes earlier records from there on; None where there is nothing to
        do.

        Raises:
            RunLogError: the file is of a newer format.
        """
        if not line.strip():
            return None
        try:
            raw = json.loads(line.decode("utf-8"))
            if not isinstance(raw, dict):
                raise MalformedError
            known = cast("dict[str, Any]", raw)
            return self._header(known, name) if HEADER_KEY in known else records.checked(known, fields)
        except RunLogError:
            raise
        except (ValueError, RecursionError):  # a wrong encoding and a malformed record are ValueErrors too
            self.skipped += 1
            return None

    def _header(self, raw: dict[str, Any], name: str) -> int | None:
        check_version(raw.get("format_version"), name)
        resumed_at = raw.get("resumed_at_step")
        if resumed_at is not None and type(resumed_at) is not int:
            raise MalformedError
        for key in raw.keys() - {HEADER_KEY, "resumed_at_step"}:
            self.header.setdefault(key, raw[key])
        return resumed_at


def check_version(version: Any, name: str) -> None:
    """Accept this major and the older ones, whatever the minor.

    Raises:
        MalformedError: it is no version.
        RunLogError: it is a newer major.
    """
    if is_newer(version, FORMAT_VERSION):
        ours = FORMAT_VERSION.partition(".")[0]
        raise RunLogError(f"The format version of {name} must be {ours}.x or older; found {version[:40]!r}. {UPGRADE}")
