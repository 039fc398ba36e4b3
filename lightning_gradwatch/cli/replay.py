"""``gradwatch replay BUNDLE --module my_pkg:MyModel``: run the step of an anomaly again, and see
the operation where it began."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gradwatch.cli._types import count
from lightning_gradwatch.plain import say


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "replay",
        help="run the step of an anomaly again",
        description=__doc__,
        epilog="Exit code: 0 where the same event happens again, 1 where another or none does, 2 where the step cannot be run.",
    )
    parser.add_argument("path", metavar="BUNDLE", type=Path, help="a file in the folder `bundles` of a run log")
    parser.add_argument(
        "--module",
        metavar="MODULE:CLASS",
        required=True,
        help="the LightningModule: my_pkg:MyModel, or train.py:MyModel",
    )
    parser.add_argument("--args", metavar="JSON", help="arguments of the class that the bundle lacks, as a JSON object")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run it (%(default)s)")
    parser.add_argument(
        "--max-mib",
        metavar="MIB",
        type=count,
        help="memory that the bundle may take (default: four times what its file takes, or 64)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the step; say whether the same event happened, and where it began.

    Raises:
        BundleError: a user's mistake.
    """
    from lightning_gradwatch.replay.target import arguments_of, load_target
    from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, BundleError, read_bundle

    bundle = read_bundle(args.path, max_mib=args.max_mib)
    extras = bundle[BUNDLE_KEY]
    recorded = extras["event"]
    unheld = [f"{at} ({kind})" for at, kind in extras["problems"].items() if not at.startswith("hyper_parameters")]
    if unheld:
        raise BundleError(
            f"This bundle lacks {', '.join(unheld)}, which a file of tensors cannot hold: it cannot be run."
        )
    arguments, target = arguments_of(args.args), load_target(args.module)
    # Not before the user's own code has chosen which of Lightning's names it is.
    from lightning_gradwatch.replay.build import build_module
    from lightning_gradwatch.replay.compare import differences
    from lightning_gradwatch.replay.rerun import watched_events
    from lightning_gradwatch.replay.search import find_origin

    def make() -> Any:
        return build_module(target, bundle, arguments)

    module = make()  # what is wrong with it is said before anything else
    say(*_header(args.path, extras))
    for warm in (False, True):
        seen = [event.to_record() for event in watched_events(module, bundle, device=args.device, warm=warm)]
        distances = [differences(recorded, event) for event in seen]
        module = make()  # a step may change what no bundle holds
        if [] in distances:
            break
    _say_outcome(recorded, seen, distances)
    origin = find_origin(module, bundle, device=args.device)
    if origin is not None:
        say(*f"It began here: {origin.told()}".split("\n"))
    elif seen:
        say("Where it began could not be followed to one operation.")
    return 0 if [] in distances else 1


def _header(path: Path, extras: Mapping[str, Any]) -> list[str]:
    counts, versions = extras["counts"], extras["versions"]
    lines = [
        f"{path.name}: {extras['module']}, optimizer step {counts['global_step']}, epoch {counts['epoch']}, "
        f"batch {counts['batch_idx']}, {extras['precision']}, on {extras['device']}, torch {versions.get('torch')}",
        f"Recorded: {extras['event']['kind']}: {extras['event']['message']}",
    ]
    if extras["changed_weights"]:
        names = ", ".join(extras["changed_weights"])
        lines.append(
            f"Note: the step changed these weights before it was written down; they are as it left them: {names}"
        )
    return lines


def _say_outcome(recorded: Mapping[str, Any], seen: list[dict[str, Any]], distances: list[list[str]]) -> None:
    if [] in distances:
        say("Replayed: the same event.")
    elif not seen:
        say(f"Replayed: no event. The step went through without {recorded['kind']}.")
    else:
        event, distance = min(zip(seen, distances, strict=True), key=lambda pair: len(pair[1]))
        say(f"Replayed: another event, {event['kind']}: {event['message']} ({'; '.join(distance)})")
