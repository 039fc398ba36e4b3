"""A run that is too short for a verdict says how it gets one, and so it does."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from lightning_gradwatch import GradWatch
from lightning_gradwatch.runlog.verdict import Verdict
from tests.models import TinyLanguageModel, sentences, trainer


def closing_lines(tmp_path: Any, caplog: Any, steps: int, every: int) -> tuple[str, GradWatch]:
    caplog.clear()
    watch = GradWatch(every_n_steps=every)
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, [watch], max_steps=steps).fit(TinyLanguageModel(), sentences(64, length=30))
    return caplog.text, watch


@pytest.mark.parametrize(("steps", "every"), [(30, 50), (24, 20), (5, 4)])
def test_it_names_a_rate_with_which_there_is_a_verdict(tmp_path, caplog, steps: int, every: int) -> None:
    """Of the run at hand; followed, there are as many samples as it says, and a verdict."""
    said, _ = closing_lines(tmp_path / "few", caplog, steps, every)
    named = re.search(rf"every_n_steps=(\d+) takes (\d+) in {steps}\.", said)
    assert named is not None
    again, watch = closing_lines(tmp_path / "more", caplog, steps, int(named[1]))
    assert {layer.samples for layer in watch.verdicts} == {int(named[2])}
    assert Verdict.UNDECIDED not in {layer.verdict for layer in watch.verdicts}
    assert "sample more often" not in again


class ByHand(TinyLanguageModel):
    """Optimizes by hand, and its backward passes go past Lightning, so that no look is taken at clipping."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, words: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        super().training_step(words, batch_idx).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("model", "options", "steps"),
    [
        (ByHand, {"max_epochs": 1}, 8),
        (ByHand, {"max_epochs": 2}, 16),
        (TinyLanguageModel, {"max_epochs": 1, "accumulate_grad_batches": 2}, 4),
    ],
)
def test_it_does_not_rest_on_a_look_at_clipping(tmp_path, caplog, model: Any, options: Any, steps: int) -> None:
    """Whoever sends the loss back, the optimizer steps of the run are counted."""
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, [GradWatch(every_n_steps=50)], **options).fit(model(), sentences(64, length=30))
    assert re.search(rf"every_n_steps=\d+ takes \d+ in {steps}\.", caplog.text)


@pytest.mark.parametrize(("steps", "every"), [(12, 2), (2, 1), (3, 50)])
def test_it_is_not_said_where_it_is_of_no_use(tmp_path, caplog, steps: int, every: int) -> None:
    """With samples enough, and in a run in which no rate would take three."""
    said, _ = closing_lines(tmp_path, caplog, steps, every)
    assert ("sample more often" in said) == (steps == 3)
