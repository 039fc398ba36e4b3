"""Failures that have an explanation."""

from __future__ import annotations

import re

_THEN = "mended after this run, with which the test passed."

KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"tests\.unit\.recurrent\.measure\.test_loops::test_a_state_changed_between_two_steps\[dropped\]",
        f"with PyTorch 2.2's random numbers the test's dropout severed a sequence; {_THEN}",
    ),
    (
        r"tests\.(unit\.recurrent\.measure\.test_at_once::test_nothing_of_the_training_is_touched"
        r"|integration\.located\.test_judgement\.TestLargeScale::"
        r"|integration\.clipping\.test_(clip_audit_in_a_loop::test_weights|published_training::test_auto|clip_audit::test_the_norms)"
        r"|integration\.shown\.test_start_finder::)",
        "the test itself used a name that these releases lack; mended after this run, with which it passed, or was skipped as lacking it.",
    ),
    (
        r"::tests\.integration\.together\.test_",
        "the module imports FSDP2, which these releases lack; mended after this run.",
    ),
    (
        r"::tests\.integration\.shown\.test_in_kernel",
        "nbformat was not installed.",
    ),
    (
        r"tests\.integration\.shown\.test_demo::test_lightnings",
        f"Matplotlib 3.8 calls what the newest pyparsing calls deprecated, which nobody is shown; {_THEN}",
    ),
    (
        r"tests\.integration\.exact\.test_cells::",
        "a fault of the commit that was run, whatever the versions: a new event said more than it should; " + _THEN,
    ),
    (
        r"tests\.unit\.(test_dependencies::|test_thresholds::test_a_number_that_judges_is_defined_once)",
        "of the package's own source, whatever the versions of PyTorch: Python 3.10 lists not every distribution, and a name "
        f"stood for two numbers; {_THEN}",
    ),
    (
        r"tests\.integration\.located\.test_reach::test_the_number_of_an_event_is_that_of_its_step",
        f"the test counted timesteps by h alone, the event by h and c together, whatever the versions; {_THEN}",
    ),
    (
        r"tests\.integration\.shown\.test_logged_keys::test_logged_keys_are_those_of_the_docstring",
        f"Python 3.13 takes the indentation from docstrings, by which the test read a table in one; {_THEN}",
    ),
    (
        r"tests\.integration\.located\.test_scans::test_a_gradient_that_arrives_broken",
        f"PyTorch 2.14 sends nothing through a clamp at its very bound, by which the test broke its gradient; {_THEN}",
    ),
)
"""A pattern that the failed test's id begins with, and why it fails."""


def explanation(test: str) -> str | None:
    """Why a test fails; None where that is not known."""
    return next((why for pattern, why in KNOWN if re.match(pattern, test)), None)
