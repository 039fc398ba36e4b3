"""What is said on the terminal where there is no Lightning to say it."""

from __future__ import annotations

import logging

from lightning_gradwatch.outside.processes import rank
from lightning_gradwatch.plain import plain_lines

_log = logging.getLogger("lightning_gradwatch")


def say(text: str, *, urgent: bool = False, everywhere: bool = False) -> None:
    """Say something through the logger ``lightning_gradwatch``.

    Python shows no notes of a logger that nobody has set up. As Lightning's does, ours then
    writes to standard error.

    Args:
        urgent: as a warning, which a logger set to that level lets through.
        everywhere: on this rank, whichever it is.
    """
    if rank() and not everywhere:
        return
    if not _log.hasHandlers():
        _log.addHandler(logging.StreamHandler())
        _log.propagate = False
    if _log.level == logging.NOTSET and not logging.getLogger().handlers:
        _log.setLevel(logging.INFO)
    _log.log(logging.WARNING if urgent else logging.INFO, "%s", plain_lines(text))
