"""Where every timestep has a backward pass of its own, it is told whether the state between them is detached or goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import EventKind, GradWatch, load_run
from lightning_gradwatch.cli import main
from lightning_gradwatch.runlog.summary import LayerSummary, Verdict, summarise
from tests.integration.recurrences import HIDDEN, WIDTH, ByHand, OwnCell, cell, fused, series, zeros
from tests.models import trainer

MODULES = {
    "GRU": lambda: nn.GRU(WIDTH, HIDDEN, batch_first=True),
    "two-layer LSTM": lambda: nn.LSTM(WIDTH, HIDDEN, 2, batch_first=True),
    "LSTMCell": lambda: nn.LSTMCell(WIDTH, HIDDEN),
    "RNNCell": lambda: nn.RNNCell(WIDTH, HIDDEN),
    "cell of one's own": OwnCell,
}


CALLED_ONCE = [name for name in MODULES if name != "cell of one's own"]
"""Of one call a step nobody can tell that a module of one's own is a cell."""


def cut(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else tuple(one.detach() for one in state)


def step(net: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """One timestep of a fused module or of a cell: what it puts out, and the state for the next one."""
    if isinstance(net, nn.RNNBase):
        return net(x[:, None], state)
    state = net(x, zeros(x) if state is None and isinstance(net, OwnCell) else state)
    return (state if isinstance(state, Tensor) else state[0]), state


class Stateful(ByHand):
    """Each batch is one timestep, which goes on from the batch before."""

    def __init__(self, net: nn.Module, timesteps: int = 1) -> None:
        super().__init__(net, lambda net, x: x)
        self.state, self.timesteps = None, timesteps

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        for t in range(self.timesteps):
            output, self.state = step(self.net, batch[0][:, t], self.state)
        self.state = cut(self.state)
        return output.square().mean()


class Online(ByHand):
    """Optimizes by hand at every timestep; ``between`` makes the next state of the last one."""

    def __init__(self, net: nn.Module, between: Any) -> None:
        super().__init__(net, lambda net, x: x)
        self.automatic_optimization, self.between = False, between

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer, state = self.optimizers(), None
        optimizer.zero_grad()
        for x in batch[0].unbind(1)[:6]:
            output, state = step(self.net, x, state)
            self.manual_backward((output - 1).square().mean(), retain_graph=self.between is not cut)
            state = self.between(state)
        optimizer.step()


def fit(
    model: ByHand, tmp_path: Path, every: int = 1, steps: int = 6, **options: Any
) -> tuple[GradWatch, LayerSummary]:
    torch.manual_seed(0)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=every, summary=False)
    trainer(tmp_path, [watch], max_steps=steps, **options).fit(model, series(count=64))
    log = load_run(tmp_path / "run")
    return watch, summarise(log.profile_records, log.event_records)[-1]


def severed(watch: GradWatch) -> list[str]:
    return [event.message for event in watch.events if event.kind == EventKind.NO_GRADIENT_THROUGH_TIME]


@pytest.mark.parametrize("name", CALLED_ONCE)
@pytest.mark.parametrize("every", [1, 2])
def test_a_state_carried_from_batch_to_batch(name: str, every: int, tmp_path: Path, capsys: Any) -> None:
    """One timestep a batch, detached after each: nothing flows through time, with a remedy that can be followed."""
    watch, layer = fit(Stateful(MODULES[name]()), tmp_path, every)
    (message,) = severed(watch)
    assert "begins with the state that the pass before ended with, detached" in message
    assert layer.verdict is Verdict.NO_GRADIENT_THROUGH_TIME
    assert main(["diagnose", str(tmp_path / "run"), "--json"]) == 0
    assert "Let a backward pass go over several timesteps" in capsys.readouterr().out


@pytest.mark.parametrize("name", MODULES)
def test_a_state_detached_after_every_backward_pass_of_a_batch(name: str, tmp_path: Path) -> None:
    """So too where the module optimizes by hand."""
    watch, layer = fit(Online(MODULES[name](), cut), tmp_path, steps=2)
    assert len(severed(watch)) == 1
    assert layer.verdict is Verdict.NO_GRADIENT_THROUGH_TIME


@pytest.mark.parametrize("name", MODULES)
def test_the_remedy_helps(name: str, tmp_path: Path) -> None:
    """With three timesteps in a backward pass the gradient flows through these three."""
    watch, layer = fit(Stateful(MODULES[name](), timesteps=3), tmp_path)
    assert not severed(watch)
    assert layer.timesteps == 3
    assert layer.verdict is Verdict.HEALTHY
    assert "within segments of 3 timesteps" in layer.sentence


@pytest.mark.parametrize("name", ["GRU", "two-layer LSTM"])
def test_a_graph_that_is_kept_is_not_called_cut(name: str, tmp_path: Path) -> None:
    """With ``retain_graph=True`` the gradient does flow from pass to pass: what was not followed is not called nothing."""
    watch, layer = fit(Online(MODULES[name](), lambda state: state), tmp_path, steps=2)
    assert not severed(watch)
    assert layer.verdict is Verdict.UNDECIDED
    assert "how far the gradient reaches from call to call was not measured" in layer.sentence


class Rows(ByHand):
    """A gated layer over single timesteps: the state is data, another one for each batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        h = torch.rand(len(batch[0]), HIDDEN) if self.run is None else zeros(batch[0])
        return (
            step(self.net, batch[0][:, 0], h if isinstance(self.net, (OwnCell, nn.RNNCell)) else h[None])[0]
            .square()
            .mean()
        )


@pytest.mark.parametrize("start", [None, "zeros"])
@pytest.mark.parametrize("name", ["GRU", "RNNCell"])
def test_a_single_timestep_that_carries_nothing_is_no_severed_state(name: str, start: Any, tmp_path: Path) -> None:
    """And where a state of data comes in, it is said that it has no graph, and no more."""
    watch, layer = fit(Rows(MODULES[name](), start), tmp_path)
    assert not severed(watch)
    assert layer.verdict is Verdict.NOT_OBSERVED
    assert ("is given a state without a graph: if it is carried over" in layer.sentence) is (start is None)


@pytest.mark.parametrize("pieces", [4, 5, 7])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_timesteps_within_a_call_are_no_loop_of_the_users(
    kind: Any, layers: int, pieces: int, tmp_path: Path
) -> None:
    """A module fed a few timesteps at a time is measured, and no loop "behind" it is asked to be marked."""
    torch.manual_seed(0)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False)
    model = ByHand(kind(WIDTH, HIDDEN, layers, batch_first=True), fused(lambda state: state * 0.9, pieces))
    trainer(tmp_path, [watch], max_steps=1).fit(model, series(20, WIDTH))
    assert not [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]
    assert {record["timesteps"] for record in load_run(tmp_path / "run").profile_records} == {20}


def test_a_loop_over_what_a_module_puts_out_is_told_still(tmp_path: Path) -> None:
    """One written in tensor operations, over slices of the output of a fused module."""

    def run(net: nn.Module, x: Tensor) -> Tensor:
        h = zeros(x)
        for output in net(x)[0].unbind(1):
            h = torch.tanh(output + 0.5 * h)
        return h.square().mean()

    watch, _ = fit(ByHand(nn.GRU(WIDTH, HIDDEN, batch_first=True), run), tmp_path, steps=1)
    assert [event.module for event in watch.events if event.kind == EventKind.NOT_OBSERVED] == ["a loop behind net"]


def test_cells_stay_as_they_were(tmp_path: Path) -> None:
    """A loop over a cell within one backward pass, whose state has a graph, is one sequence."""
    watch, layer = fit(ByHand(nn.GRUCell(WIDTH, HIDDEN), cell(lambda h: h)), tmp_path, steps=2)
    assert not severed(watch)
    assert layer.timesteps == 12
