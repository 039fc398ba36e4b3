"""Draw the pictures of the documentation from the run logs that `gradwatch demo` left.

gradwatch demo --out DEMO
python docs/make_pictures.py DEMO
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_gradwatch import load_run
from lightning_gradwatch.report.figures import profile_picture

PICTURES = Path(__file__).parent / "pictures"
SHOWN = {
    "agreement.png": {"agreement-rnn": "vanilla RNN", "agreement-gru": "GRU", "agreement-lstm": "LSTM"},
    "explosion.png": {"explosion-bare": "no clipping", "explosion-clipped": "AdaptiveClip"},
}


def main(demo: Path) -> None:
    PICTURES.mkdir(exist_ok=True)
    for picture, runs in SHOWN.items():
        profile_picture([load_run(demo / run) for run in runs], PICTURES / picture, names=list(runs.values()))
        print(f"wrote {PICTURES / picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
