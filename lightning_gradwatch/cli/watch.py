"""``gradwatch watch RUN``: see the gradient in the terminal while a training writes its run log."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from lightning_gradwatch.cli._load import find_run
from lightning_gradwatch.cli._types import seconds
from lightning_gradwatch.plain import say
from lightning_gradwatch.runlog.follow import Follower
from lightning_gradwatch.runlog.reader import RunLogError, locate

_HOME_AND_CLEAR = "\x1b[H\x1b[2J"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "watch",
        help="follow a run in the terminal",
        description=__doc__,
        epilog="Ctrl-C ends it. It only reads the run log; the training does not notice.",
    )
    where = "folder of a run log, or one above it, of whose runs the newest is taken (default: the present one); it may appear later"
    parser.add_argument("path", metavar="RUN", type=Path, nargs="?", default=Path(), help=where)
    parser.add_argument("--once", action="store_true", help="print one picture and end, as where there is no terminal")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=1.0, help="from one look to the next (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Follow the run until Ctrl-C; of one that has ended show how it ended.

    Raises:
        RunLogError: with ``--once``, there is no run log; at any time, it cannot be read.
    """
    from lightning_gradwatch.report.extra import installed

    follower = Follower(_place(args.path))
    follower.poll()
    console = _console() if installed("rich") else None
    once = args.once or not (sys.stdout.isatty() if console is None else console.is_terminal)
    if once:
        locate(follower.path)
    if once or follower.ended is not None:
        _show(follower, console)
        if follower.ended is not None:
            say("This run has ended: nothing more will come. gradwatch report makes a page of it.")
    elif console is None:
        _follow_plainly(follower, args.interval)
    else:
        _follow(follower, args.interval, console)
    return 0


def _place(path: Path) -> Path:
    """The run log, or where one may appear."""
    try:
        return find_run(path)
    except RunLogError:
        return path


def _console() -> Any:
    from lightning_gradwatch.report.extra import require

    return require("rich.console").Console()


def _show(follower: Follower, console: Any) -> None:
    if console is None:
        from lightning_gradwatch.report.console import state_lines

        say(*state_lines(follower.run(), follower.events, _age(follower)))
    else:
        console.print(_picture(follower, width=console.width))


def _follow(follower: Follower, interval: float, console: Any) -> None:
    from lightning_gradwatch.report.extra import require

    try:
        with require("rich.live").Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_picture(follower, width=console.width, height=console.height), refresh=True)
                time.sleep(interval)
                follower.poll()
    except KeyboardInterrupt:
        # The other screen took its picture with it; two lines less leave room for the prompt.
        console.print(_picture(follower, width=console.width, height=console.height - 2))


def _follow_plainly(follower: Follower, interval: float) -> None:
    """Without rich: the same in words, the screen cleared before each."""
    try:
        while True:
            sys.stdout.write(_HOME_AND_CLEAR)
            if follower.has_run:
                _show(follower, None)
            else:
                say(f"GradWatch waits for a run log in {follower.path} (Ctrl-C ends)")
            sys.stdout.flush()
            time.sleep(interval)
            follower.poll()
    except KeyboardInterrupt:
        return


def _picture(follower: Follower, *, width: int, height: int | None = None) -> Any:
    from lightning_gradwatch.report.live import frame, waiting

    if not follower.has_run:
        return waiting(str(follower.path))
    return frame(follower.run(), width=width, height=height, counts=follower.events, age=_age(follower))


def _age(follower: Follower) -> float | None:
    written = follower.written
    return None if written is None else time.time() - written
