"""Cells that a model holds in a list of its own, where PyTorch does not know of them, are measured, and a NaN of the first step is
located in them, however they are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import EventKind, GradWatch, load_run
from tests.integration.recurrences import HIDDEN, WIDTH, ByHand, OwnCell, series, zeros
from tests.models import trainer


class Holder(nn.Module):
    """Holds cells as somebody would who forgot nn.ModuleList."""

    def __init__(self, holds: Callable[[list[nn.Module]], Any], cell: type[nn.Module]) -> None:
        super().__init__()
        self.head, self.cells = nn.Linear(HIDDEN, 1), holds([cell(), cell()])


class DividesByZero(OwnCell):
    """The norm of the first state, which is zero."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + h / h.norm(dim=1, keepdim=True))


HOLDS: dict[str, Callable[[list[nn.Module]], Any]] = {
    "cells[1]": lambda cells: cells,
    "cells[own]": lambda cells: {"other": cells[0], "own": cells[1]},
    "cells[0]": lambda cells: (cells[1],),
}


@pytest.mark.parametrize("by_forward", [True, False])
@pytest.mark.parametrize("name", HOLDS)
@pytest.mark.parametrize("kind", [OwnCell, DividesByZero])
def test_a_cell_in_a_list(name: str, by_forward: bool, kind: type[nn.Module], tmp_path: Path) -> None:
    """It is found on the first step, under the name of where it lies."""
    torch.manual_seed(0)
    holder = Holder(HOLDS[name], kind)
    cell = holder.cells["own"] if isinstance(holder.cells, dict) else holder.cells[int(name[-2])]

    def run(net: Holder, x: Tensor) -> Tensor:
        h = zeros(x)
        for t in range(x.shape[1]):
            h = cell.forward(x[:, t], h) if by_forward else cell(x[:, t], h)
        return net.head(h).square().mean()

    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False)
    trainer(tmp_path, [watch], max_steps=3).fit(ByHand(holder, run), series(5, WIDTH, count=24))
    if kind is OwnCell:
        assert {record["module"] for record in load_run(tmp_path / "run").profile_records} == {f"net.{name}"}
        assert not watch.events
    else:
        first = watch.events[0]
        assert (first.kind, first.step, first.module) == (EventKind.NONFINITE_STATE, 0, f"net.{name}")
        assert "the cell's own arithmetic" in first.message
