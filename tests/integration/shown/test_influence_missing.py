"""Where the influence of inputs was asked for and is not measured, whoever looks for it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import load_run, watch
from lightning_gradwatch.report import plot_influence, write_report

mpl.use("Agg")


class Own(nn.Module):
    """A cell of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4 + 4, 4)

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        h = torch.zeros_like(x) if h is None else h
        return torch.tanh(self.mix(torch.cat([x, h], -1)))


class Looped(nn.Module):
    """Cells in a loop, one on top of the other, and an ``nn.GRU`` over them if one is asked for."""

    def __init__(self, *cells: nn.Module, over: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding, self.cells, self.over = nn.Linear(4, 4), nn.ModuleList(cells), over

    def forward(self, x: Tensor) -> Tensor:
        states, outputs = [None] * len(self.cells), []
        for step in self.embedding(x).unbind(1):
            for place, cell in enumerate(self.cells):
                states[place] = cell(step, states[place])
                step = states[place][0] if isinstance(states[place], tuple) else states[place]
            outputs.append(step)
        output = torch.stack(outputs, 1)
        return output if self.over is None else self.over(output)[0]


MODELS: dict[str, Callable[[], Looped]] = {
    "nn.LSTMCell": lambda: Looped(nn.LSTMCell(4, 4)),
    "a cell of one's own": lambda: Looped(Own()),
    "stacked cells": lambda: Looped(nn.GRUCell(4, 4), nn.LSTMCell(4, 4), nn.RNNCell(4, 4)),
}


def trained(model: nn.Module, folder: Path):
    """The run log of three steps."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch(model, optimizer, every_n_steps=1, influence=True, dirpath=folder / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(6, 8, 4))[:, -1].pow(2).mean().backward()
            optimizer.step()
    return load_run(folder / "run")


@pytest.mark.parametrize("name", MODELS)
def test_cells_in_a_loop_have_none(tmp_path: Path, name: str) -> None:
    """Nothing is drawn, neither figure nor page tells to ask for what was asked for, and both say of what it is measured."""
    run = trained(MODELS[name](), tmp_path)
    modules = {record["module"] for record in run.profile_records}
    assert modules
    assert "x" not in {record["state"] for record in run.profile_records}
    with pytest.raises(ValueError, match=r"though it was to measure them\. Influence is measured of nn.RNN") as told:
        plot_influence(run)
    assert "not of cells in a loop" in str(told.value)
    page = write_report(run, tmp_path / "page.html").read_text("utf-8")
    assert all(module in page.split("no influence of ")[1].split(". Influence")[0] for module in modules)


def test_beside_a_fused_module_only_its_own_is_drawn(tmp_path: Path) -> None:
    """Of the cell below it the figure says that there is none."""
    run = trained(Looped(nn.LSTMCell(4, 4), over=nn.GRU(4, 4, batch_first=True)), tmp_path)
    assert {record["module"] for record in run.profile_records if record["state"] == "x"} == {"over"}
    assert len(plot_influence(run).get_lines()) > 0
    with pytest.raises(ValueError, match=r"found 'cells\.0'\. Influence is measured of nn.RNN"):
        plot_influence(run, module="cells.0")
    assert "no influence of cells.0." in write_report(run, tmp_path / "page.html").read_text("utf-8")


def test_where_all_are_fused_or_it_was_not_asked_for_nothing_is_said(tmp_path: Path) -> None:
    """The page has no such note."""
    model = nn.Sequential(nn.Linear(4, 4))
    model.rnn = nn.LSTM(4, 4, batch_first=True)
    model.forward = lambda x: model.rnn(x)[0]
    run = trained(model, tmp_path)
    assert {record["state"] for record in run.profile_records} == {"h", "c", "x"}
    assert "no influence of" not in write_report(run, tmp_path / "page.html").read_text("utf-8")
