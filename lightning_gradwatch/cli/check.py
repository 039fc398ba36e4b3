"""``gradwatch check RUN``: one line of verdict and an exit code, for scripts and CI."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gradwatch.cli._load import add_run, load
from lightning_gradwatch.cli._types import share
from lightning_gradwatch.events import EventKind, Severity, closes_episode
from lightning_gradwatch.plain import command, say
from lightning_gradwatch.runlog.comparison import HORIZON_TOLERANCE, compare
from lightning_gradwatch.runlog.folding import counted_once
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import summarise


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "check",
        help="fail where a run has a critical event or verdict",
        description=__doc__,
        epilog="Exit code: 0 without a critical event or verdict, 1 with one, 2 where a run log cannot be read. With"
        " --against: 1 where something is worse than in BASE.",
    )
    add_run(parser)
    parser.add_argument(
        "--warnings", action="store_true", help="a warning, or a verdict as grave as one, fails the check too"
    )
    parser.add_argument(
        "--against",
        metavar="BASE",
        type=Path,
        help="fail only for what is worse than in this run: a shorter horizon, "
        "clipping that has come to limit the steps, a critical event or verdict that is new",
    )
    parser.add_argument(
        "--horizon-tolerance",
        metavar="SHARE",
        type=share,
        help="with --against: how much of its horizon a layer may lose, from 0 to 1 (default: a third)",
    )
    parser.add_argument(
        "--allow",
        metavar="KIND",
        action="append",
        default=[],
        type=str.upper,
        choices=[kind.value for kind in EventKind],
        help="with --against: a kind of critical event that may be new; may be given several times",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Say the verdict; 1 where the check fails.

    Raises:
        ValueError: an option of the comparison is given without the run to compare with.
    """
    if args.against is not None:
        return _against(load(args.path), load(args.against), args)
    if args.allow or args.horizon_tolerance is not None:
        option = "--allow" if args.allow else "--horizon-tolerance"
        raise ValueError(f"`{option}` belongs to a comparison. Add --against BASE, or leave it out.")
    run_log = load(args.path)
    failing = (Severity.CRITICAL, Severity.WARNING) if args.warnings else (Severity.CRITICAL,)
    each = counted_once(run_log.event_records)
    counts = Counter(event["severity"] for event in each)
    said = ", ".join(_count(counts[severity], severity) for severity in (Severity.CRITICAL, Severity.WARNING))
    skipped = _skipped(run_log.event_records)
    said += f" ({skipped:,} steps skipped)" if skipped > _skipped(each) else ""
    grave = [e for e in run_log.event_records if e["severity"] in failing or _diverged(e)]
    layers = [layer for layer in summarise(run_log.profile_records, run_log.event_records) if layer.severity in failing]
    if not grave and not layers:
        recorded = run_log.profile_records or run_log.step_records or run_log.event_records
        say(f"ok: {said}{'' if recorded else '; nothing was recorded'}")
        return 0
    if grave:
        first = grave[0]
        what = f"the first at step {first['step']}: {first['kind']}, {first['message'] or 'no message'}"
    else:
        what = layers[0].line
    say(f"failed: {said}; {what} ({command('gradwatch', 'events', str(run_log.path))} says what to do)")
    return 1


def _against(run_log: Run, base: Run, args: argparse.Namespace) -> int:
    """Say what is worse than in another run; 1 where anything is."""
    tolerance = HORIZON_TOLERANCE if args.horizon_tolerance is None else args.horizon_tolerance
    seen = compare(run_log, base, horizon_tolerance=tolerance, allowed=args.allow)
    of = f"than in {str(base.path)!r}"
    if not seen.worse:
        say(f"ok: nothing is worse {of}")
    elif len(seen.worse) == 1:
        say(f"failed: worse {of}: {seen.worse[0]}")
    else:
        say(f"failed: {len(seen.worse)} things are worse {of}", *(f"  {said}" for said in seen.worse))
    say(*(f"  not compared: {said}" for said in seen.unknown))
    return int(bool(seen.worse))


def _count(number: int, severity: Severity) -> str:
    return f"{number:,} {severity} event{'' if number == 1 else 's'}"


def _skipped(events: Sequence[Mapping[str, Any]]) -> int:
    return sum(event["kind"] == EventKind.STEP_SKIPPED for event in events)


def _diverged(event: Mapping[str, Any]) -> bool:
    """Whether it says that the training diverged, and not that it came back: no check may pass
    that, whatever its severity."""
    return event["kind"] == EventKind.DIVERGED and not closes_episode(event)
