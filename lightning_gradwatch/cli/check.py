"""``gradwatch check RUN``: one line of verdict and an exit code, for scripts and CI."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gradwatch.cli._load import load
from lightning_gradwatch.events import EventKind, Severity, closes_episode
from lightning_gradwatch.runlog.plain import plain


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "check",
        help="fail where a run has a critical event",
        description=__doc__,
        epilog="Exit code: 0 without a critical event, 1 with one or a diverged training, 2 where the run log cannot be read.",
    )
    parser.add_argument("path", metavar="RUN", type=Path, help="folder of a run log")
    parser.add_argument("--warnings", action="store_true", help="a warning fails the check too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Say the verdict; 1 where the check fails."""
    found = load(args.path)
    failing = (Severity.CRITICAL, Severity.WARNING) if args.warnings else (Severity.CRITICAL,)
    counts = Counter(event["severity"] for event in found.event_records)
    said = ", ".join(_count(counts[severity], severity) for severity in (Severity.CRITICAL, Severity.WARNING))
    grave = [e for e in found.event_records if e["severity"] in failing or _diverged(e)]
    if not grave:
        print(f"ok: {said}")
        return 0
    first = grave[0]
    what = plain(f"{first['kind']}, {first['message'] or 'no message'}")
    print(f"failed: {said}; the first at step {first['step']}: {what} (gradwatch events {args.path} says what to do)")
    return 1


def _count(number: int, severity: Severity) -> str:
    return f"{number:,} {severity} event{'' if number == 1 else 's'}"


def _diverged(event: Mapping[str, Any]) -> bool:
    """Whether it says that the training diverged, and not that it came back: no check may pass that, whatever its severity."""
    return event["kind"] == EventKind.DIVERGED and not closes_episode(event)
