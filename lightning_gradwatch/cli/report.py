"""``gradwatch report RUN``: one page that shows where the gradient went, and opens offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_gradwatch.cli._load import RUN_HELP, load
from lightning_gradwatch.plain import say


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser("report", help="write a page about one or more runs", description=__doc__)
    several = f"{RUN_HELP}; several are shown side by side"
    parser.add_argument("paths", metavar="RUN", nargs="*", type=Path, default=[Path()], help=several)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="where the page goes (default: report.html in the first run)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it lies."""
    runs = [load(path) for path in args.paths]
    from lightning_gradwatch.report.html import write_report

    output = args.output or runs[0].path / "report.html"
    try:
        say(str(write_report(runs, output)))
    except OSError as error:
        raise ValueError(
            f"`--output` must be a file that can be written; found {str(output)!r} ({error.strerror}). Name another one."
        ) from error
    return 0
