"""Weights that get a gradient and stay as they are: told once, with the remedy tried; and what only looks like it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_gradwatch import EventKind, GradWatch, watch
from lightning_gradwatch.events import Severity
from tests.models import TinyLanguageModel, sentences, trainer


class Left(TinyLanguageModel):
    """Its optimizer is made by a function of its own."""

    def __init__(self, make: Any, **options: Any) -> None:
        super().__init__(**options)
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(self)


def told(tmp_path: Path, make: Any, *callbacks: Any, every: int = 2, steps: int = 12) -> list[Any]:
    gradwatch = GradWatch(every_n_steps=every)
    trainer(tmp_path, [gradwatch, *callbacks], max_steps=steps).fit(Left(make), sentences())
    told.verdicts = gradwatch.verdicts  # type: ignore[attr-defined]
    return [event for event in gradwatch.events if event.kind == EventKind.WEIGHTS_UNCHANGED]


def others(model: nn.Module) -> list[nn.Parameter]:
    return [weight for name, weight in model.named_parameters() if not name.startswith("rnn.")]


UNCHANGED = {
    "the others alone": lambda model: torch.optim.Adam(others(model)),
    "a copy's": lambda model: torch.optim.Adam(copy.deepcopy(model).parameters()),
    "those of one bias": lambda model: torch.optim.SGD(others(model)[-1:], lr=0.1),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_it_is_told_once(tmp_path, name: str) -> None:
    """At the third sample in a row; and the verdict says so."""
    (event,) = told(tmp_path, UNCHANGED[name])
    assert (event.severity, event.step, event.module) == (Severity.WARNING, 4, "rnn")
    assert "None of them is in an optimizer. So it was in 3 samples in a row, from step 0 on." in event.message
    assert "self.parameters()" in event.remedy
    assert all("but nothing changes its weights" in layer.said for layer in told.verdicts)  # type: ignore[attr-defined]
    assert all(layer.severity == Severity.WARNING for layer in told.verdicts)  # type: ignore[attr-defined]


def test_the_remedy_helps(tmp_path) -> None:
    """With all parameters nothing is told, and no verdict says it."""
    assert told(tmp_path, lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)) == []
    assert not any("changes" in layer.said for layer in told.verdicts)  # type: ignore[attr-defined]


def test_the_audit_says_that_a_copy_gets_no_gradient(tmp_path) -> None:
    """No step with a gradient that is not finite, as it might be, but none with a gradient at all."""
    gradwatch = GradWatch(every_n_steps=2)
    model = Left(UNCHANGED["a copy's"])
    trainer(tmp_path, [gradwatch], max_steps=6).fit(model, sentences())
    (clipping,) = gradwatch.clipping
    assert "none of the parameters that it was given had a gradient" in clipping.sentence


class ByHand(Callback):
    """Somebody else's update, which no optimizer knows of."""

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        with torch.no_grad():
            for weight in pl_module.rnn.parameters():
                if weight.grad is not None:
                    weight.data -= 0.1 * weight.grad


def test_what_is_changed_by_other_means_is_not_told(tmp_path) -> None:
    """By hand, past every optimizer."""
    assert told(tmp_path, lambda model: torch.optim.SGD(others(model), lr=0.1), ByHand()) == []


LOOKALIKES = {
    "a rate of 0": lambda step: 0.0,
    "a warm-up from 0": lambda step: min(step / 4, 1.0),
    "a rate of 0 every other step": lambda step: float(step % 2),
    "a rate that is small": lambda step: 1e-12,
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_weights_that_an_optimizer_holds_are_not_told(tmp_path, name: str) -> None:
    """A rate of 0 is somebody's own doing, and what many schedules begin or end with."""

    def make(model: Any) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, LOOKALIKES[name])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    assert told(tmp_path, make, every=1, steps=8) == []


def test_a_module_that_is_frozen_is_not_told(tmp_path) -> None:
    """It says itself that it is to stay as it is."""

    def make(model: Any) -> torch.optim.Optimizer:
        model.rnn.requires_grad_(False)
        return torch.optim.SGD(others(model), lr=0.1)

    assert told(tmp_path, make) == []


def in_a_loop(weights: Any, **options: Any) -> list[Any]:
    torch.manual_seed(0)
    net = nn.ModuleDict({"rnn": nn.GRU(3, 5, batch_first=True), "head": nn.Linear(5, 1)})
    optimizer = torch.optim.SGD(weights(net), lr=0.1)
    x: Tensor = torch.randn(4, 6, 3)
    with watch(net, optimizer, every_n_steps=2, **options) as w:
        for _ in range(8):
            optimizer.zero_grad()
            net["head"](net["rnn"](x)[0][:, -1]).square().mean().backward()
            optimizer.step()
    return [event for event in w.events if event.kind == EventKind.WEIGHTS_UNCHANGED]


def test_in_a_plain_loop_too(tmp_path) -> None:
    """From the optimizers that the watch was given."""
    (event,) = in_a_loop(lambda net: net["head"].parameters(), dirpath=tmp_path / "left")
    assert event.module == "rnn"
    assert in_a_loop(lambda net: net.parameters(), dirpath=tmp_path / "held") == []


def test_cells_in_a_loop_too(tmp_path) -> None:
    """The module is the cell."""

    class Loop(Left):
        def __init__(self, make: Any) -> None:
            super().__init__(make)
            self.cell = nn.GRUCell(6, 8)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            state = torch.zeros(4, 8)
            for _ in range(5):
                state = self.cell(torch.ones(4, 6), state)
            return super().training_step(batch, batch_idx) + state.square().mean()

    def make(model: Any) -> torch.optim.Optimizer:
        kept = set(map(id, model.cell.parameters()))
        return torch.optim.SGD([weight for weight in model.parameters() if id(weight) not in kept], lr=0.1)

    gradwatch = GradWatch(every_n_steps=2)
    trainer(tmp_path, [gradwatch], max_steps=8).fit(Loop(make), sentences())
    (event,) = [event for event in gradwatch.events if event.kind == EventKind.WEIGHTS_UNCHANGED]
    assert event.module == "cell"


@pytest.mark.parametrize("holder", [list, nn.ModuleList])
def test_a_cell_in_a_plain_list_is_told_how_to_be_held(tmp_path, holder: Any) -> None:
    """self.parameters() does not know it; in an nn.ModuleList it does, and nothing is told."""

    class Listed(TinyLanguageModel):
        def __init__(self) -> None:
            super().__init__()
            self.cells = holder([nn.GRUCell(6, 8)])

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            state = torch.zeros(4, 8)
            for _ in range(5):
                state = self.cells[0](torch.ones(4, 6), state)
            return super().training_step(batch, batch_idx) + state.square().mean()

    gradwatch = GradWatch(every_n_steps=1)
    trainer(tmp_path, [gradwatch], max_steps=8).fit(Listed(), sentences())
    events = [event for event in gradwatch.events if event.kind == EventKind.WEIGHTS_UNCHANGED]
    assert len(events) == (holder is list)
    assert all("plain list" in event.remedy and "nn.ModuleList" in event.remedy for event in events)
