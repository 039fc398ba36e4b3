"""A loss in which no weight has a part: told once, with the remedy tried; and what only looks like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch
from lightning_gradwatch.events import Severity
from tests.models import TinyLanguageModel, sentences, trainer


class Shaped(TinyLanguageModel):
    """Its loss goes through a function of its own."""

    def __init__(self, shape: Any, **options: Any) -> None:
        super().__init__(**options)
        self.shape = shape

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.shape(super().training_step(batch, batch_idx), self.trainer.global_step)


def told(tmp_path: Path, shape: Any, *callbacks: Any, **options: Any) -> list[Any]:
    watch = GradWatch(every_n_steps=2)
    model = Shaped(shape, **options)
    trainer(tmp_path, [watch, *callbacks], max_steps=12).fit(model, sentences())
    return [event for event in watch.events if event.kind == EventKind.ZERO_GRADIENT]


FLAT = {
    "a factor of 0": lambda loss, step: 3 + 0.0 * loss,
    "a clamp": lambda loss, step: (1e6 * loss).clamp(max=1000.0),
    "a round": lambda loss, step: (10 * loss).round(),
    "a margin that is far away": lambda loss, step: 1 - nn.functional.relu(loss - 100.0),
    "from step 4 on": lambda loss, step: loss if step < 4 else 1e30 + 0.0 * loss,
}


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("name", FLAT)
def test_it_is_told_once_with_the_loss(tmp_path, name: str, clips: bool) -> None:
    """After three steps in a row, beside AdaptiveClip too; and with the loss as it was it is not told."""
    (event,) = told(tmp_path / "flat", FLAT[name], *[AdaptiveClip()] * clips)
    assert (event.severity, event.step) == (Severity.WARNING, 6 if "from" in name else 2)
    assert "exactly 0: nothing is learned. It was so 3 times in a row, although the loss is" in event.message
    assert told(tmp_path / "mended", lambda loss, step: loss) == []


LOOKALIKES = {
    "a hinge that is met": lambda loss, step: nn.functional.relu(loss - 100.0),
    "every other step": lambda loss, step: loss if step % 2 else 3 + 0.0 * loss,
    "two steps": lambda loss, step: 3 + 0.0 * loss if step in (3, 4) else loss,
    "gradients whose squares underflow": lambda loss, step: loss * 1e-30,
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_looks_like_it_is_not_told(tmp_path, name: str) -> None:
    """Nothing left to learn, single steps, gradients that are small."""
    assert told(tmp_path, LOOKALIKES[name], optimizer="SGD") == []


def test_the_verdict_names_it(tmp_path) -> None:
    """The layer is not observed, and the closing lines have the event."""
    watch = GradWatch(every_n_steps=2)
    trainer(tmp_path, [watch], max_steps=12).fit(Shaped(FLAT["a clamp"]), sentences())
    lines = watch._found.summary()
    assert any("not observed. No gradient reached its hidden states" in line for line in lines)
    assert any("ZERO_GRADIENT" in line for line in lines)
