"""``gradwatch demo``: see a gradient vanish and another one explode, or train on a text of your
own."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_gradwatch.cli._types import count

_CELLS = ("rnn", "gru", "lstm")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser("demo", help="train small networks and show what is seen", description=__doc__)
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, default=Path("gradwatch-demo"), help="where the results go (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (%(default)s)")
    parser.add_argument("--steps", type=count, help="optimizer steps of each training; fewer show less")
    own_text = parser.add_argument_group(
        "your own text", "with --text; FILEs are UTF-8, none is Python's standard library"
    )
    own_text.add_argument("--text", metavar="FILE", nargs="*", help="learn these files")
    own_text.add_argument("--cell", choices=_CELLS, help="recurrent network (lstm)")
    own_text.add_argument("--layers", type=count, help="stacked layers (1)")
    own_text.add_argument("--hidden", type=count, help="hidden units of each layer (128)")
    own_text.add_argument("--dropout", type=float, help="in front of, between and behind the layers (0)")
    own_text.add_argument("--tied", action="store_true", default=None, help="softmax and embedding share their weight")
    own_text.add_argument("--lr", type=float, help="Adam's learning rate (0.003)")
    own_text.add_argument("--timesteps", type=count, help="characters of a window (100)")
    own_text.add_argument("--batch-size", type=count, help="windows of a step (32)")
    own_text.add_argument("--accelerator", help="as in Lightning's Trainer (auto)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Raises:
        DemoError: a user's mistake.
        ImportError: something of the extra ``report`` is missing.
    """
    from lightning_gradwatch.report.extra import require_all

    require_all()
    names = ("cell", "layers", "hidden", "dropout", "tied", "lr", "timesteps", "batch_size", "accelerator")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    # Torch and Lightning take seconds to import: not before the arguments are known to be right.
    from lightning_gradwatch.demo.error import DemoError
    from lightning_gradwatch.demo.own_text import TextOptions
    from lightning_gradwatch.demo.run import run_demo, run_on_text

    if args.text is None:
        if given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise DemoError(f"`{option}` belongs to a text of your own. Add --text FILE, or leave it out.")
        run_demo(args.out, seed=args.seed, steps=args.steps)
        return 0
    if args.steps is not None:
        given["steps"] = args.steps
    run_on_text(args.out, options=TextOptions(files=args.text, seed=args.seed, **given))
    return 0
