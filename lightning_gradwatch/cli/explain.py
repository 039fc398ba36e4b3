"""``gradwatch explain KIND``: what a kind of event means, how it is found, and what to do."""

from __future__ import annotations

import argparse
import difflib

from lightning_gradwatch.events import EventKind
from lightning_gradwatch.plain import say


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser("explain", help="explain a kind of event", description=__doc__)
    parser.add_argument("kind", metavar="KIND", nargs="?", help="such as NOT_OBSERVED or not-observed; none lists them")
    parser.add_argument("--example", action="store_true", help="print a script that provokes it, and nothing else")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the page of a kind, or the list of kinds.

    Raises:
        ValueError: there is no such kind, or an example is wanted of none.
    """
    from lightning_gradwatch.report import console, explain

    if args.kind is None:
        if args.example:
            raise ValueError("`--example` needs a KIND. gradwatch explain lists them.")
        console.print_kinds()
        return 0
    kind = explain.kind_named(args.kind)
    if kind is None:
        wanted = args.kind.upper().replace("-", "_")
        close = [kind for kind in EventKind if wanted in kind] or difflib.get_close_matches(wanted, list(EventKind), 1)
        hint = f"Did you mean {' or '.join(close[:3])}?" if wanted and close else "gradwatch explain lists them."
        raise ValueError(f"`KIND` must be a kind of event; found {args.kind!r}. {hint}")
    if args.example:
        say(*explain.example(kind).split("\n"))
    else:
        console.print_explanation(kind)
    return 0
