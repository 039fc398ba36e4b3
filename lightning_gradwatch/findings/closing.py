"""What is said on the terminal when a training ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.announcer import Say
from lightning_gradwatch.findings.findings import Findings
from lightning_gradwatch.report.extra import commands


def say_findings(
    say: Say, findings: Findings, others: Sequence[Event], run_dir: Path | None, hint: Sequence[str] = ()
) -> None:
    """The verdicts and events in a few lines, and the commands to look further.

    Args:
        others: events that others wrote into the same run log.
        run_dir: its folder; None without one.
        hint: lines that come last.
    """
    looks = [] if run_dir is None else [f"  {line}" for line in commands(run_dir)]
    say("\n".join([*findings.summary(others), *looks, *hint]), urgent=findings.is_critical())
