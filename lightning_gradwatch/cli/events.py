"""``gradwatch events RUN``: what went wrong, where, and what to do about it."""

from __future__ import annotations

import argparse
import json
from fnmatch import fnmatchcase
from typing import Any

from lightning_gradwatch.cli._load import add_run, load
from lightning_gradwatch.events import EventKind, Severity
from lightning_gradwatch.plain import command, say
from lightning_gradwatch.runlog.schema import to_json

_ORDER = [severity.value for severity in Severity]
_WORSE = {severity: _ORDER[place:] for place, severity in enumerate(_ORDER)}
"""Severity → itself and those that matter more."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser("events", help="list the events of a run", description=__doc__)
    add_run(parser)
    kinds = [kind.value for kind in EventKind]
    parser.add_argument("--kind", type=_kind, choices=kinds, metavar="KIND", help=f"only this kind: {', '.join(kinds)}")
    parser.add_argument("--severity", type=str.lower, choices=_ORDER, help="only events of this severity or worse")
    parser.add_argument("--module", metavar="NAME", help="only events of this module; * and ? match as in file names")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, for other programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the events that fit, in the order in which they happened."""
    run_log = load(args.path)
    chosen = [event for event in run_log.event_records if _fits(event, args)]
    if args.json:
        for event in chosen:
            say(json.dumps(to_json(event)).replace("\x7f", "\\u007f"))
        return 0
    from lightning_gradwatch.report.console import print_events, print_summary

    every = len(run_log.event_records)
    if every and not chosen:
        say(f"None of the {every:,} events matches." if every > 1 else "The one event does not match.")
        return 0
    if len(chosen) == every:
        print_summary(run_log)
    print_events(chosen, fold=args.kind is None)
    for bundle in sorted(run_log.path.glob("bundles/*.pt")):
        model = str(run_log.meta.get("model") or "MODULE:CLASS")
        say(f"To repeat a step: {command('gradwatch', 'replay', str(bundle), '--module', model)}")
    return 0


def _kind(text: str) -> str:
    """As ``gradwatch explain`` accepts it; what is no kind stays, for the parser to refuse."""
    from lightning_gradwatch.report.explain import kind_named

    kind = kind_named(text)
    return text if kind is None else kind.value


def _fits(event: dict[str, Any], args: argparse.Namespace) -> bool:
    return (
        (args.kind is None or event["kind"] == args.kind)
        and (args.severity is None or event["severity"] in _WORSE[args.severity])
        and (args.module is None or fnmatchcase(event["module"] or "", args.module))
    )
