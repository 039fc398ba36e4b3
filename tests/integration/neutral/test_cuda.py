"""On a CUDA device the training is the same, and an ordinary step does not wait for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_gradwatch import GradWatch, load_run
from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.engine.watch import Watch
from lightning_gradwatch.events import Event, Moment
from tests.asserts import assert_identical
from tests.integration.cuda import ON_CUDA, full_precision
from tests.models import TinyLanguageModel, sentences, trainer

__all__ = ["full_precision"]

pytestmark = [*ON_CUDA, pytest.mark.usefixtures("full_precision")]


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_training_on_the_gpu_is_identical_to_the_bit(cell: str, precision: str, tmp_path: Any) -> None:
    """Weights, optimizer state and the device's random stream are the same with GradWatch and without it."""

    def train(*callbacks: Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        model = TinyLanguageModel(cell, layers=2, dropout=0.3)
        options = {"accelerator": "gpu", "precision": precision, "deterministic": True, "max_steps": 8}
        run = trainer(tmp_path, callbacks, **options)
        run.fit(model, sentences())
        return {
            "weights": model.cpu().state_dict(),
            "optimizer": run.optimizers[0].state_dict(),
            "rng": (torch.get_rng_state(), torch.cuda.get_rng_state()),
        }

    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run", summary=False)
    assert_identical(train(), train(watch))
    assert load_run(tmp_path / "run").profile_records


def test_an_ordinary_step_never_waits_for_the_device() -> None:
    """Between samples no operation of GradWatch blocks on the device: torch would raise."""
    torch.manual_seed(0)
    model = TinyLanguageModel("LSTM", layers=2).cuda()
    (words,) = next(iter(sentences()))
    words = words.cuda()
    events: list[Event] = []
    watch = Watch(
        model,
        {"rnn": model.rnn},
        WatchOptions(find_cells=False, max_sequences=2, anchors=2),
    )
    try:
        for number in range(5):
            step = Step(Moment(number), 0, number == 0, accumulation=1, scale=1.0, complete=True, scaled=False)
            model.zero_grad()
            watch.capture.begin()
            loss = model.loss(words, number)
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            watch.before_backward(loss, step)
            torch.cuda.set_sync_debug_mode("default")
            loss.backward()
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            events += watch.after_backward(loss, step).events
            events += watch.end_step(step.moment).events
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        events += watch.poll().events
    finally:
        torch.cuda.set_sync_debug_mode("default")
        watch.close()
    assert not events
