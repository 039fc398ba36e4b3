"""Failures that have an explanation."""

from __future__ import annotations

import re

KNOWN: tuple[tuple[str, str], ...] = ()
"""A pattern that the failed test's id begins with, and why it fails."""


def explanation(test: str) -> str | None:
    """Why a test fails; None where that is not known."""
    return next((why for pattern, why in KNOWN if re.match(pattern, test)), None)
