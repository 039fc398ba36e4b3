"""Versions of what is kept on the disk. A reader takes every minor of its own major, and what is
older.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradwatch.runlog.records import MalformedError

STATE_VERSION = "1.0"
"""Of what the callbacks leave in a checkpoint."""

UPGRADE = "A newer lightning-gradwatch wrote it: pip install --upgrade lightning-gradwatch"

_MOST_DIGITS = 9


def is_newer(version: Any, ours: str) -> bool:
    """Whether what has this version would be misread: its major is newer than that of ``ours``.

    Raises:
        MalformedError: it is no version.
    """
    return _major(version) > _major(ours)


def check_state(state: Mapping[str, Any], owner: str) -> None:
    """See that a callback can take up its state from a checkpoint. One that names no version is of
    the first.

    Args:
        owner: whose, for the message.

    Raises:
        ValueError: a newer version of the package wrote it, or it is damaged.
    """
    version = state.get("format_version", STATE_VERSION)
    try:
        wrong = UPGRADE if is_newer(version, STATE_VERSION) else None
    except MalformedError:
        wrong = "The checkpoint is damaged."
    if wrong is not None:
        rule = f"must be {_major(STATE_VERSION)}.x or older"
        raise ValueError(
            f"The format version of {owner}'s state in a checkpoint {rule}; found {version!r:.40}. {wrong}"
        )


def _major(version: Any) -> int:
    major = version.partition(".")[0] if isinstance(version, str) else ""
    if not (major.isascii() and major.isdigit() and len(major) <= _MOST_DIGITS):
        raise MalformedError
    return int(major)
