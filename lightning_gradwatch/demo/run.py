"""What ``gradwatch demo`` does: both acts, or the user's own text, and the artefacts they leave."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_gradwatch.demo import show
from lightning_gradwatch.demo.artefacts import Artefacts
from lightning_gradwatch.demo.error import DemoError
from lightning_gradwatch.demo.exploding import STEPS as EXPLOSION_STEPS
from lightning_gradwatch.demo.exploding import Explosion, explode
from lightning_gradwatch.demo.influence import draw
from lightning_gradwatch.demo.own_text import OwnText, TextOptions, learn_text
from lightning_gradwatch.demo.vanishing import STEPS as AGREEMENT_STEPS
from lightning_gradwatch.demo.vanishing import Memory, compare_cells
from lightning_gradwatch.report.figures import profile_picture
from lightning_gradwatch.report.html import write_report
from lightning_gradwatch.runlog.reader import Run

OUT = "gradwatch-demo"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo measured and where it lies; ``seconds`` of wall time, all of it included."""

    memories: list[Memory]
    explosion: Explosion
    artefacts: Artefacts
    seconds: float


def run_demo(
    out: Path = Path(OUT), *, seed: int = 0, steps: int | None = None, console: Any | None = None
) -> DemoResult:
    """Show a gradient that vanishes and one that explodes.

    Args:
        out: where the artefacts go; a numbered folder beside it if it exists.
        seed: of everything drawn.
        steps: optimizer steps of every training; None takes what the effects need.
        console: a ``rich.console.Console``; None is the standard output.

    Raises:
        DemoError: ``out`` cannot be written.
    """
    started = time.perf_counter()
    console = console or show.make_console()
    folder = fresh_folder(out)
    show.vanishing_begins(console, steps or AGREEMENT_STEPS)
    memories = compare_cells(folder, seed=seed, console=console, steps=steps or AGREEMENT_STEPS)
    show.memories(console, memories)
    show.exploding_begins(console)
    explosion = explode(folder, seed=seed, console=console, steps=steps or EXPLOSION_STEPS)
    show.explosion(console, explosion)
    trainings = [*(memory.training for memory in memories), explosion.bare, explosion.clipped]
    artefacts = replace(
        _leave(folder, [training.run for training in trainings]),
        sentence=draw([(show.NAMES[memory.cell], memory.influences) for memory in memories], folder / "sentence.png"),
    )
    seconds = time.perf_counter() - started
    show.artefacts(console, artefacts, seconds)
    return DemoResult(memories, explosion, artefacts, seconds)


def run_on_text(
    out: Path = Path(OUT), *, options: TextOptions, console: Any | None = None
) -> tuple[OwnText, Artefacts]:
    """Train on the user's own text under ``GradWatch`` and ``AdaptiveClip``.

    Args:
        out: as for :func:`run_demo`.
        options: what to train on what.
        console: as for :func:`run_demo`.

    Raises:
        DemoError: a text or ``out`` cannot be used.
    """
    started = time.perf_counter()
    console = console or show.make_console()
    data = options.data()  # before the folder: a mistake in a name leaves nothing behind
    folder = fresh_folder(out)
    show.text_begins(console, options, data)
    result = learn_text(folder, data, options, console=console)
    show.own_text(console, result)
    artefacts = _leave(folder, [result.training.run])
    show.artefacts(console, artefacts, time.perf_counter() - started)
    return result, artefacts


def fresh_folder(out: Path) -> Path:
    """Make ``out``, or ``out-1``, ``out-2`` … where it holds something already.

    Raises:
        DemoError: it cannot be made.
    """
    number, folder = 0, out
    try:
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(None, "a file, not a folder")
        while folder.exists() and any(folder.iterdir()):
            number += 1
            folder = out.with_name(f"{out.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DemoError(f"`--out` must be a folder that can be written; found {str(out)!r} ({reason}).") from error
    return folder


def _leave(folder: Path, runs: list[Run]) -> Artefacts:
    picture = profile_picture(runs, folder / "profiles.png")
    return Artefacts(folder, picture, write_report(runs, folder / "report.html"))
