"""A training that writes its run log over some seconds, for a reader in another process to follow.

python -m tests.integration.shown.train_slowly FOLDER STEPS SECONDS_PER_STEP
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lightning.pytorch as pl

from lightning_gradwatch import AdaptiveClip, GradWatch
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import seed_everything


class Slowly(pl.Callback):
    """Waits after every step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: object) -> None:
        time.sleep(self.seconds)


def main(folder: str, steps: str, seconds: str) -> None:
    seed_everything(0)
    watch = GradWatch(every_n_steps=1, dirpath=folder)
    fit = trainer(
        Path(folder).parent,
        [watch, AdaptiveClip(dirpath=folder), Slowly(float(seconds))],
        max_steps=int(steps),
    )
    fit.fit(TinyLanguageModel(layers=2), sentences())


if __name__ == "__main__":
    main(*sys.argv[1:])
