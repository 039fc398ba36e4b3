"""Failures that have an explanation."""

from __future__ import annotations

import re

KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"tests\.integration\.neutral\.test_traps::test_what_is_marked_in_a_graph_without_breaks_is_left_alone\[tap_scan\]",
        "PyTorch 2.6 compiles no zip of unlike lengths, which `tap_scan` had; mended after this run, with which the test passed.",
    ),
)
"""A pattern that the failed test's id begins with, and why it fails."""


def explanation(test: str) -> str | None:
    """Why a test fails; None where that is not known."""
    return next((why for pattern, why in KNOWN if re.match(pattern, test)), None)
