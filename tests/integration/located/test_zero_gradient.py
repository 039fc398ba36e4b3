"""A loss in which no weight has a part: told once, with the remedy tried; and what only looks like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
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


def unlearned(loss: Tensor, step: int) -> Tensor:
    """A leaf of its own, made of the loss's value."""
    return torch.tensor(loss.item(), requires_grad=True)


CUT = {
    "detached": lambda loss, step: loss.detach().requires_grad_(),
    "made anew of its value": unlearned,
    "a computation on what was detached": lambda loss, step: (loss.detach().requires_grad_() * 2).square(),
    "through numpy": lambda loss, step: torch.from_numpy(loss.detach().numpy()).requires_grad_() + 1,
    "from step 4 on": lambda loss, step: loss if step < 4 else loss.detach().requires_grad_(),
}


@pytest.mark.parametrize("name", CUT)
def test_a_loss_that_lost_its_graph_is_told_once(tmp_path, name: str) -> None:
    """No parameter gets a gradient: what is looked for is a detach, and not a factor of 0."""
    (event,) = told(tmp_path, CUT[name])
    assert (event.severity, event.step) == (Severity.WARNING, 6 if "from" in name else 2)
    assert "no parameter of the model got a gradient" in event.message
    assert "It was so 3 times in a row, although the loss is" in event.message
    assert "detach()" in event.remedy
    assert "clamp" not in event.remedy


UNCUT = {
    "a leaf of 0 where there is nothing to learn": lambda loss, step: torch.zeros((), requires_grad=True),
    "two steps": lambda loss, step: loss.detach().requires_grad_() if step in (3, 4) else loss,
    "every other step": lambda loss, step: loss if step % 2 else loss.detach().requires_grad_(),
}


@pytest.mark.parametrize("name", UNCUT)
def test_a_loss_without_a_graph_for_a_good_reason_is_not_told(tmp_path, name: str) -> None:
    """A loss of 0 that somebody made, and single steps."""
    assert told(tmp_path, UNCUT[name]) == []


class TakesGradients(Callback):
    """Takes them away when they have come, as an engine does that steps by itself."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        pl_module.zero_grad(set_to_none=True)


def test_gradients_that_somebody_took_away_are_not_told(tmp_path) -> None:
    """The loss hangs on the weights all the same."""
    watch = GradWatch(every_n_steps=2)
    trainer(tmp_path, [TakesGradients(), watch], max_steps=6).fit(TinyLanguageModel(), sentences())
    assert not [event for event in watch.events if event.kind == EventKind.ZERO_GRADIENT]


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_saturated_units_are_not_the_losss_fault(tmp_path, kind: str) -> None:
    """The loss sends a gradient to the hidden states: what is looked at is the module and its inputs."""

    class Saturated(TinyLanguageModel):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            x = torch.full((4, 8, 6), 1e7)
            return self.rnn(x)[0].square().mean() + 1

    torch.manual_seed(0)
    watch = GradWatch(every_n_steps=2)
    model = Saturated()
    model.rnn = getattr(nn, kind)(6, 8, batch_first=True)
    trainer(tmp_path, [watch], max_steps=6).fit(model, sentences())
    (event,) = [event for event in watch.events if event.kind == EventKind.ZERO_GRADIENT]
    assert "The loss sends a gradient to the hidden states" in event.remedy
    assert "clamp" not in event.remedy
