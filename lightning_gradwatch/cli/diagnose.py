"""``gradwatch diagnose RUN``: verdicts, places, evidence and remedies of a run in one document."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_gradwatch.cli._load import add_run, load
from lightning_gradwatch.plain import say
from lightning_gradwatch.runlog.schema import to_json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "diagnose", help="say what is the matter with a run and what to do", description=__doc__
    )
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document, for scripts and agents")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the document, or what it says."""
    from lightning_gradwatch.report.diagnosis import diagnose

    diagnosis = diagnose(load(args.path))
    if args.json:
        say(*json.dumps(to_json(diagnosis), indent=2).replace("\x7f", "\\u007f").split("\n"))
    else:
        say(*_lines(diagnosis))
    return 0


def _lines(diagnosis: Mapping[str, Any]) -> Iterator[str]:
    yield f"{diagnosis['run']['path']}: the worst is {_a(diagnosis['worst'])}"
    for verdict in diagnosis["verdicts"]:
        yield f"  {verdict['place']}: {verdict['verdict']}. {verdict['sentence']}"
    for entry in diagnosis["clipping"]:
        yield f"  Clipping, optimizer {entry['optimizer']}: {entry['verdict']}. {entry['sentence'] or ''}".rstrip()
    for event in diagnosis["events"]:
        times = "" if event["count"] == 1 else f", {event['count']:,} times until step {event['last_step']}"
        yield f"  {event['severity'] or 'event'} {event['kind']} at step {event['first_step']}{times}: {event['message'] or ''}"
    for advice in diagnosis["advice"]:
        yield f"  What to do about {advice['kind']} ({', '.join(advice['places'][:5])}): {advice['remedy']}"


def _a(worst: str | None) -> str:
    return {None: "nothing at all", "info": "a note", "warning": "a warning"}.get(worst, f"{worst}")
