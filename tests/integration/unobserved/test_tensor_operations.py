"""A recurrence in tensor operations, of which no module is called, is told by a parameter in it; what only looks like one is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import Event, EventKind, GradWatch, load_run, tap, tap_scan
from lightning_gradwatch.report import write_report
from lightning_gradwatch.runlog.summary import summarise
from tests.integration.recurrences import ByHand, Run, series
from tests.integration.unobserved.tensor_operations import (
    NONE,
    RECURRENCES,
    SCANS,
    WIDTH,
    Net,
    linear,
    plain,
    weight,
    zeros,
)
from tests.models import trainer

TIMESTEPS = 9


def fit(net: nn.Module, run: Run, tmp_path: Path, **options: Any) -> GradWatch:
    torch.manual_seed(0)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=1, summary=False, **options)
    trainer(tmp_path, [watch], max_steps=2).fit(ByHand(net, run), series(TIMESTEPS, WIDTH, count=16))
    return watch


def notes(watch: GradWatch) -> list[Event]:
    return [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]


def beside(net: nn.ModuleList, x: Tensor) -> Tensor:
    """An nn.LSTM, and on it the recurrence."""
    return net[1](net[0](x)[0]).square().mean()


def with_lstm(net: nn.Module) -> nn.ModuleList:
    return nn.ModuleList([nn.LSTM(WIDTH, WIDTH, batch_first=True), net])


@pytest.mark.parametrize("name", RECURRENCES)
def test_it_is_told_beside_an_lstm(name: str, tmp_path: Path) -> None:
    """In one line, as a note, with the remedy, and under the name of one of its parameters."""
    net = with_lstm(RECURRENCES[name]())
    watch = fit(net, beside, tmp_path)
    (event,) = watch.events
    assert event.kind == EventKind.NOT_OBSERVED
    assert event.severity == "info"
    places = {f"net.{own}" for own, _ in net.named_parameters()}
    assert event.module in places | {f"a loop behind {place.rpartition('.')[0]}" for place in places}
    assert "tap(h, name=" in event.message
    log = load_run(tmp_path / "run")
    lines = [layer.line for layer in summarise(log.profile_records, log.event_records)]
    assert len(lines) == 2
    assert any(line.startswith(f"{event.module}: not observed.") and "tap(h, name=" in line for line in lines)
    assert str(event.module) in write_report(log, tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("made", "mark"),
    [*((one, tap) for one in RECURRENCES.values()), *((one, tap_scan) for one in SCANS.values())],
    ids=[*RECURRENCES, *SCANS],
)
def test_marked_it_is_measured_and_not_told(made: Callable[[], Net], mark: Any, tmp_path: Path) -> None:
    """The remedy that is given: nothing more is said of it."""
    watch = fit(with_lstm(made()), lambda net, x: net[1](net[0](x)[0], mark).square().mean(), tmp_path)
    assert not notes(watch)
    assert {record["module"] for record in load_run(tmp_path / "run").profile_records} == {"net.0", "mine"}


@pytest.mark.parametrize("name", SCANS)
def test_a_scan_is_told_beside_an_lstm(name: str, tmp_path: Path) -> None:
    """All timesteps at once, by one operation: told under a parameter that it is taken of, as a note that asks."""
    net = with_lstm(SCANS[name]())
    watch = fit(net, lambda net, x: net[1](net[0](x)[0], lambda h, **_: h).square().mean(), tmp_path)
    assert watch.events
    for event in watch.events:
        assert event.kind == EventKind.NOT_OBSERVED
        assert event.severity == "info"
        assert event.module in {f"net.{own}" for own, _ in net.named_parameters()}
        assert f"{name} is taken of" in event.message
        assert "If it is one, tap_scan()" in event.message
        assert "tap_scan(h, decay=a)" in event.remedy


@pytest.mark.parametrize(
    ("made", "remedy"),
    [
        *((RECURRENCES[name], "tap(h, name=") for name in ("products", "linear layers", "fast weights")),
        *((one, "tap_scan(h, decay=a)") for one in SCANS.values()),
    ],
)
def test_by_itself_it_is_told_at_once(made: Callable[[], Net], remedy: str, tmp_path: Path) -> None:
    """Where nothing else is watched, nobody is advised to take GradWatch out, but told how to have it measured."""
    with pytest.warns(UserWarning, match="found no recurrent module") as said:
        fit(made(), lambda net, x: net(x, lambda h, **_: h).square().mean(), tmp_path)
    (line,) = [str(warning.message) for warning in said if "found no recurrent module" in str(warning.message)]
    assert remedy in line
    assert "Take it out" not in line


@pytest.mark.parametrize("name", ["products", "an LSTM by hand", "fast weights", "linear attention"])
def test_times_are_counted(name: str, tmp_path: Path) -> None:
    """So many as there are timesteps: twice as many in a sequence twice as long."""
    net, said = with_lstm(RECURRENCES[name]()), []
    for timesteps in (TIMESTEPS, 2 * TIMESTEPS):
        torch.manual_seed(0)
        watch = GradWatch(dirpath=tmp_path / f"{timesteps}", summary=False)
        trainer(tmp_path, [watch], max_steps=1).fit(ByHand(net, beside), series(timesteps, WIDTH, count=8))
        said += [int(word) for event in notes(watch) for word in event.message.split() if word.isdigit()]
    assert said in ([TIMESTEPS, 2 * TIMESTEPS], [TIMESTEPS - 1, 2 * TIMESTEPS - 1])


def shared_in_depth(net: Net, x: Tensor, tap: Any) -> Tensor:
    for _ in range(4):
        x = x + torch.relu(nn.functional.layer_norm(x, (WIDTH,)) @ net.W)
    return x


def test_a_layer_repeated_in_depth_is_spoken_of_truly(tmp_path: Path) -> None:
    """One layer four times in a row is a note that asks, and says how often it is used."""
    (event,) = fit(with_lstm(Net(shared_in_depth, W=weight(WIDTH, WIDTH))), beside, tmp_path).events
    assert "is used 4 times in a row" in event.message
    assert "If that is a loop over time" in event.message
    assert "repeated in depth" in event.remedy


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_recurrence_is_not_told(name: str, tmp_path: Path) -> None:
    """Weights shared without a chain, sums, lists and buffers over time, layers that have something in common."""
    watch = fit(with_lstm(NONE[name]()), lambda net, x: beside(net, x) + net[0](x)[0].square().mean(), tmp_path)
    assert not notes(watch)


def stacked(net: Net, x: Tensor, tap: Any) -> Tensor:
    h = g = zeros(x)
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ net.W + h @ net.U)
        g = torch.tanh(net.V(h) + g @ net.R)
    return g


def around_a_cell(net: Net, x: Tensor, tap: Any) -> Tensor:
    """The product lies on the way of the cell's own state."""
    h = zeros(x)
    for t in range(x.shape[1]):
        h = net.cell(x[:, t], h @ net.U)
    return h


def above_a_cell(net: Net, x: Tensor, tap: Any) -> Tensor:
    """A recurrence of its own that reads a cell's states."""
    h = g = zeros(x)
    for t in range(x.shape[1]):
        h = net.cell(x[:, t], h)
        g = torch.tanh(h + g @ net.U)
    return g


def feeding_back(net: Net, x: Tensor, tap: Any) -> Tensor:
    """What is read out is the next input, with attention over all that was: all of it is the decoder's own recurrence."""
    h, read, coverage = zeros(x), zeros(x), torch.zeros(x.shape[:2])
    keys = net.V(x)
    for _ in range(x.shape[1]):
        h = net.cell(read, h)
        attention = ((keys * h[:, None]).sum(-1) - coverage).softmax(1)
        coverage = coverage + attention
        read = (attention[..., None] * x).sum(1) @ net.U + h
    return h


PARTS = {
    "two layers, each with a state of its own": (stacked, {"net.U", "net.R"}),
    "a product on the way of a cell's state": (around_a_cell, set[str]()),
    "a recurrence above a cell": (above_a_cell, {"net.U"}),
    "a decoder with attention, coverage and its outputs fed back": (feeding_back, set[str]()),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.filterwarnings("ignore:.*found no recurrent module.*")
def test_each_is_told_once_and_none_that_is_measured(name: str, tmp_path: Path) -> None:
    """Recurrences that do not depend on one another both ways are two; what lies within a measured one belongs to it."""
    run, told = PARTS[name]
    parts = {own: weight(WIDTH, WIDTH) for own in ("W", "U", "R")}
    net = Net(run, cell=nn.GRUCell(WIDTH, WIDTH), V=linear(), **parts)
    watch = fit(net, lambda net, x: net(x).square().mean(), tmp_path)
    assert {event.module for event in notes(watch)} == told | ({"net.cell"} if name.startswith("two") else set())


@pytest.mark.parametrize("name", ["linear layers", "a GRU by hand", "fast weights", "a scripted function"])
def test_the_search_changes_nothing(name: str, tmp_path: Path) -> None:
    """The weights of a training are the same to the bit with it and without it."""
    found = []
    for watched in (True, False):
        torch.manual_seed(0)
        model = ByHand(with_lstm(RECURRENCES[name]()), beside)
        callbacks = [GradWatch(dirpath=tmp_path / "run", summary=False)] if watched else []
        trainer(tmp_path, callbacks, max_steps=3).fit(model, series(TIMESTEPS, WIDTH, count=24))
        found.append([parameter.detach().clone() for parameter in model.parameters()] + [torch.get_rng_state()])
    assert all(map(torch.equal, *found))


def test_a_parameter_outside_of_the_model_is_told_by_its_shape(tmp_path: Path) -> None:
    """It has no name."""
    own = Net(plain, W=weight(WIDTH, WIDTH), U=weight(WIDTH, WIDTH))
    watch = fit(nn.LSTM(WIDTH, WIDTH, batch_first=True), lambda net, x: own(net(x)[0]).square().mean(), tmp_path)
    assert [event.module for event in notes(watch)] == ["a parameter (8×8) outside of the model"]


@pytest.mark.filterwarnings("ignore:.*found no recurrent module.*")
def test_a_graph_that_is_too_large_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not searched, and nobody takes silence for an answer."""
    monkeypatch.setattr("lightning_gradwatch.engine.unmarked_recurrences.MOST_NODES", 30)
    (event,) = notes(fit(RECURRENCES["products"](), lambda net, x: net(x).square().mean(), tmp_path))
    assert event.module is None
    assert "was not searched" in event.message


@pytest.mark.parametrize("read", [lambda h: h, lambda h: h.relu(), lambda h: h.transpose(1, 2)])
def test_a_loop_whose_states_are_marked_together_is_not_told(read: Any, tmp_path: Path) -> None:
    """As a diagonal recurrence, with tap_scan."""

    def run(net: Net, x: Tensor) -> Tensor:
        decay, h, states = net.a.sigmoid(), zeros(x), []
        for t in range(x.shape[1]):
            h = decay * h + net.W(x[:, t])
            states.append(h)
        return read(tap_scan(torch.stack(states, 1), decay)).square().mean()

    assert not notes(fit(Net(plain, W=linear(), a=weight(WIDTH)), run, tmp_path))
