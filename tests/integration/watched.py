"""A training of the tiny language model under GradWatch, and a value that is planted into it."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import Callback

from lightning_gradwatch import GradWatch
from tests.models import TinyLanguageModel, sentences, trainer


def fit(tmp_path, model=None, callbacks=None, data=None, **options):
    watch = GradWatch(every_n_steps=100, dirpath=tmp_path / "run") if callbacks is None else callbacks[0]
    model = TinyLanguageModel() if model is None else model
    run = trainer(tmp_path, callbacks or [watch], **options)
    run.fit(model, data or sentences())
    return watch, model, run


class Plant(Callback):
    """Puts a value into one entry of a parameter before one step's forward."""

    def __init__(self, parameter: str, index: tuple[int, ...], value: float, step: int) -> None:
        self.parameter, self.index, self.value, self.step = parameter, index, value, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.get_parameter(self.parameter)[self.index] = self.value
