"""Draw the pictures of the documentation from the run logs that `gradwatch demo` left.

gradwatch demo --out DEMO
python docs/make_pictures.py DEMO
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lightning_gradwatch import load_run
from lightning_gradwatch.report.figures import profile_picture
from lightning_gradwatch.runlog import Run

PICTURES = Path(__file__).parent / "pictures"
CELLS = {"agreement-rnn": "vanilla RNN", "agreement-gru": "GRU", "agreement-lstm": "LSTM"}
CLIPPING = {"explosion-bare": "no clipping", "explosion-clipped": "AdaptiveClip"}


def main(demo: Path) -> None:
    PICTURES.mkdir(exist_ok=True)
    shutil.copy(demo / "sentence.png", PICTURES / "sentence.png")
    profile_picture([load_run(demo / run) for run in CELLS], PICTURES / "agreement.png", names=list(CELLS.values()))
    runs = [load_run(demo / run) for run in CLIPPING]
    titles = [f"{name}: {ending(run)}" for name, run in zip(CLIPPING.values(), runs, strict=True)]
    profile_picture(runs, PICTURES / "explosion.png", titles=titles)


def ending(run: Run) -> str:
    """How a training ended: this picture is about what clipping does, and the verdict is about something else."""
    last = run.profile_records[-1]
    return f"loss {last['loss']:.3g} at step {last['step']}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
