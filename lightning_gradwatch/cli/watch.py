"""``gradwatch watch RUN``: see the gradient in the terminal while a training writes its run log."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from lightning_gradwatch.cli._types import seconds
from lightning_gradwatch.runlog.follow import Follower
from lightning_gradwatch.runlog.reader import locate


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "watch",
        help="follow a run in the terminal",
        description=__doc__,
        epilog="Ctrl-C ends it. It only reads the run log; the training does not notice.",
    )
    parser.add_argument("path", metavar="RUN", type=Path, help="folder of a run log; it may appear later")
    parser.add_argument("--once", action="store_true", help="print one picture and end, as where there is no terminal")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=1.0, help="from one look to the next (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Follow the run until Ctrl-C.

    Raises:
        RunLogError: with ``--once``, there is no run log; at any time, it cannot be read.
    """
    from lightning_gradwatch.report._extra import require

    console = require("rich.console").Console()
    follower = Follower(args.path)
    follower.poll()
    if args.once or not console.is_terminal:
        locate(args.path)
        console.print(_picture(follower, width=console.width))
        return 0
    try:
        with require("rich.live").Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_picture(follower, width=console.width, height=console.height), refresh=True)
                time.sleep(args.interval)
                follower.poll()
    except KeyboardInterrupt:
        # The other screen took its picture with it; two lines less leave room for the prompt.
        console.print(_picture(follower, width=console.width, height=console.height - 2))
    return 0


def _picture(follower: Follower, *, width: int, height: int | None = None) -> Any:
    from lightning_gradwatch.report.live import frame, waiting

    if not follower.found:
        return waiting(str(follower.path))
    written = follower.written
    age = None if written is None else time.time() - written
    return frame(follower.run(), width=width, height=height, counts=follower.events, age=age)
