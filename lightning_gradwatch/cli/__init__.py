"""The command ``gradwatch``: one subcommand a file, each with ``add_parser(subparsers)`` and
``run(args) -> int``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import TextIOWrapper
from typing import NoReturn

from lightning_gradwatch.plain import plain, say

_SUBCOMMANDS = ("demo", "report", "events", "explain", "watch", "check", "diagnose", "replay")
"""In the order of the help; those whose file is there are offered. Only the chosen one may import
what costs time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: what follows the command's name; None takes it from the process.

    Returns:
        The exit code: 0, 1 where a subcommand says so, 2 for a user's mistake (one line on standard
        error).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no "≥" must not end the command
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        return args.run(args)
    except SystemExit as stop:  # argparse has said what is wrong, or printed the help
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # `gradwatch events RUN | head`: nothing is wrong, nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:
        say(f"gradwatch: {_one_line(error)}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, where argparse would print its usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {plain(' '.join(message.split()))}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gradwatch", description="See where a recurrent network's gradient vanishes or explodes.")
    parser.add_argument("--version", action="version", version=f"gradwatch {_version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in _SUBCOMMANDS:
        if find_spec(f"{__name__}.{name}") is not None:
            importlib.import_module(f"{__name__}.{name}").add_parser(subparsers)
    return parser


def _version() -> str:
    try:
        return version("lightning-gradwatch")
    except PackageNotFoundError:
        return "(not installed)"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
