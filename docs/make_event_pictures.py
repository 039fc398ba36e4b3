"""Draw the pictures of the pages on event kinds, from the runs that the pages' own examples leave.

python docs/make_event_pictures.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_gradwatch import EventKind, load_run
from lightning_gradwatch.report.explain import example
from lightning_gradwatch.report.figures import plot_clipping, plot_heatmap, plot_lag
from lightning_gradwatch.runlog import Run

PICTURES = Path(__file__).parent / "pictures" / "events"


def through_time(figure: Figure, run: Run) -> None:
    left, right = figure.subplots(1, 2)
    plot_heatmap(run, ax=left).set_title("total gradient")
    plot_lag(run, ax=right)


def steps(figure: Figure, run: Run) -> None:
    plot_clipping(run, ax=figure.subplots())


def both(figure: Figure, run: Run) -> None:
    left, right = figure.subplots(1, 2)
    plot_heatmap(run, ax=left).set_title("total gradient")
    plot_clipping(run, ax=right)


SHOWN: dict[EventKind, Callable[[Figure, Run], None]] = {
    EventKind.VANISHING_HIDDEN_GRADIENT: through_time,
    EventKind.EXPLODING_HIDDEN_GRADIENT: through_time,
    EventKind.EXPLODING_GRADIENT: both,
    EventKind.GRADIENT_CLIPPED: steps,
    EventKind.STEP_SKIPPED: steps,
}


def run_of(kind: EventKind) -> Run:
    """The run log that the example of a kind leaves."""
    names: dict[str, Any] = {}
    exec(compile(example(kind), kind.page, "exec"), names)
    callback = names.get("watch") or names["clip"]
    return load_run(callback.run_dir)


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    home = Path.cwd()
    for kind, draw in SHOWN.items():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # a Trainer leaves its logs where it runs
            try:
                run = run_of(kind)
            finally:
                os.chdir(home)
        figure = Figure(figsize=(6 if draw is steps else 9.5, 3.6), layout="constrained", dpi=110)
        draw(figure, run)
        figure.savefig(PICTURES / f"{kind.page}.png")
        print(f"wrote {PICTURES / f'{kind.page}.png'}")


if __name__ == "__main__":
    main()
