"""A module that is called only where gradients are switched off is told with that reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import EventKind, GradWatch
from tests.models import TinyLanguageModel, sentences, trainer


def of_module(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.other(x)[0]


def of_cell(model: Any, x: Tensor) -> Tensor:
    state = torch.zeros(len(x), 8)
    with torch.no_grad():
        for t in range(x.shape[1]):
            state = model.other(x[:, t], state)
    return state


@torch.no_grad()
def of_decorated(model: Any, x: Tensor) -> Tensor:
    return model.other(x)[1]


WAYS = {
    "a module": (lambda: nn.GRU(6, 8, batch_first=True), of_module),
    "a cell": (lambda: nn.GRUCell(6, 8), of_cell),
    "a function's decorator": (lambda: nn.RNN(6, 8, batch_first=True), of_decorated),
}


class Both(TinyLanguageModel):
    """Has another recurrence beside its own."""

    def __init__(self, way: str, also: bool = False) -> None:
        super().__init__()
        make, self.call = WAYS[way]
        self.other, self.also = make(), also

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = torch.ones(4, 5, 6)
        made = self.call(self, x).mean()
        if self.also:
            made = made + self.other(x)[0].square().mean()
        return super().training_step(batch, batch_idx) + made


def told(tmp_path: Any, model: Any) -> list[Any]:
    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, [watch], max_steps=4).fit(model, sentences())
    return [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]


@pytest.mark.parametrize("way", WAYS)
def test_the_reason_is_named(tmp_path, way: str) -> None:
    """Whichever way it is called; the module beside it is measured."""
    (event,) = told(tmp_path, Both(way))
    assert event.module == "other"
    assert "called only where gradients are switched off" in event.message
    assert "outside of no_grad()" in event.remedy


@pytest.mark.parametrize("way", ["a module", "a function's decorator"])
def test_a_module_that_is_called_with_gradients_too_is_measured(tmp_path, way: str) -> None:
    """As one that makes its own targets."""
    assert told(tmp_path, Both(way, also=True)) == []
