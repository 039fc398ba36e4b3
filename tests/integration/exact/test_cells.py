"""Cells in every form in which people write and call them, in real trainings, against autograd on the same loop."""

# Over 300 lines: one table of the forms of a cell, each beside its own oracle.
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradwatch import EventKind, GradWatch, load_run
from tests.models import TinyLanguageModel, sentences, trainer

TIME, BATCH, SIZE = 6, 4, 3

States = list[tuple[Tensor, ...]]
"""By timestep, the states that the cell made, in the order of ``names``."""

Run = Callable[[Any, Tensor], tuple[Tensor, Tensor, States]]
"""Of cell and input: what the loss sends to the timesteps before the last, and to the last; the states."""


class Model(pl.LightningModule):
    """Runs a cell, and asks autograd for what GradWatch should find before anything else does.

    Args:
        listed: hold the cell in a plain list, of which PyTorch does not know.
    """

    def __init__(self, cell: nn.Module, run: Run, listed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.LSTM(2, 2)  # what is found beside an nn.LSTM is not looked over
        if listed:
            self.cells = [cell.double()]
        else:
            self.cell = cell.double()
        self.double()
        self.run, self.listed = run, listed

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        before, last, states = self.run(self.cells[0] if self.listed else self.cell, batch)
        flat = [state for step in states for state in step]
        self.totals = torch.autograd.grad(before + last, flat, retain_graph=True, allow_unused=True)
        self.lagged = torch.autograd.grad(last, flat, retain_graph=True, allow_unused=True)
        self.flat, self.count = flat, len(states[0])
        beside = self.rnn(batch.flatten(2)[..., :2])[0].square().mean()
        return before + last + beside

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)

    def norms(self, gradients: tuple[Tensor | None, ...]) -> np.ndarray:
        """``(state, sequence, time)``."""
        rows = [
            torch.zeros(BATCH).double() if g is None else g.flatten(1).norm(dim=1)
            for g, s in zip(gradients, self.flat, strict=True)
        ]
        return torch.stack(rows).unflatten(0, (-1, self.count)).permute(1, 2, 0).numpy()


def data(*shape: int) -> DataLoader[Any]:
    rows = torch.randn(
        3 * BATCH, TIME, *(shape or (SIZE,)), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return DataLoader(list(rows), BATCH)


def measure(model: pl.LightningModule, tmp_path: Path, *shape: int) -> tuple[GradWatch, list[dict[str, Any]]]:
    """The records of the last step, without those of the nn.LSTM beside."""
    watch = GradWatch(every_n_steps=1, max_sequences=None, keep_sequences=True, summary=False, dirpath=tmp_path / "run")
    trainer(tmp_path, [watch], max_steps=3).fit(model, data(*shape))
    records = [r for r in load_run(tmp_path / "run").profile_records if r["module"] != "rnn" and r["step"] == 2]
    return watch, records


def agrees(model: Model, records: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    """Totals of each state and the lagged gradient of all together are autograd's, to 1e-10."""
    assert [r["state"] for r in records] == list(names)
    totals, lagged = model.norms(model.totals), model.norms(model.lagged)
    for record, total in zip(records, totals, strict=True):
        assert record["exact"], record["inexact_reason"]
        assert (record["timesteps"], record["batch_size"]) == (total.shape[1], BATCH)
        assert np.allclose(record["total_by_sequence"], total, rtol=1e-10, atol=1e-14)
    joint = np.sqrt((lagged**2).sum(0))[:, ::-1]
    curve = np.median(joint / joint[:, :1], axis=0)
    for record in records:
        assert np.allclose(record["lagged"], curve, rtol=1e-10)


class Plain(nn.Module):
    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.w = nn.Linear(size, size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + self.w(h))


def zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x[:, 0])


def losses(states: States) -> tuple[Tensor, Tensor, States]:
    """A loss on each timestep's first state, and on all states of the last."""
    before = sum((step[0].square().mean() for step in states[:-1]), torch.zeros((), dtype=torch.float64))
    return before, sum(state.sin().sum() for state in states[-1]), states


def over(call: Callable[[Any, Tensor, Tensor], Tensor], between: Callable[[Tensor], Tensor] = lambda h: h) -> Run:
    """A cell with one state in a loop."""

    def run(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
        h, states = zeros(x), []
        for t in range(x.shape[1]):
            h = call(cell, x[:, t], between(h))
            states.append((h,))
        return losses(states)

    return run


DIRECTLY: dict[str, tuple[Callable[[], nn.Module], Run]] = {
    "one's own": (Plain, over(lambda cell, x, h: cell.forward(x, h))),
    "one's own, by keyword": (Plain, over(lambda cell, x, h: cell.forward(h=h, x=x))),
    "nn.GRUCell": (lambda: nn.GRUCell(SIZE, SIZE), over(lambda cell, x, h: cell.forward(x, hx=h))),
    "called in turns": (
        lambda: nn.RNNCell(SIZE, SIZE),
        over(lambda cell, x, h: cell(x, h) if float(x[0, 0]) > 0 else cell.forward(x, h)),
    ),
}


@pytest.mark.parametrize("way", DIRECTLY)
def test_a_forward_that_is_called_directly(way: str, tmp_path: Path) -> None:
    """Calls of ``cell.forward``, around all hooks, are measured as calls of the cell are."""
    make, run = DIRECTLY[way]
    model = Model(make(), run)
    watch, records = measure(model, tmp_path)
    agrees(model, records, ("h",))
    assert not watch.events
    assert "forward" not in vars(model.cell)


def test_a_fused_forward_that_is_called_directly(tmp_path: Path) -> None:
    """So are calls of a fused module's forward."""

    class Fused(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(SIZE, SIZE, batch_first=True).double()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.gru.forward(batch)[0].square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    watch, records = measure(Fused(), tmp_path)
    assert [(r["module"], r["timesteps"], r["exact"]) for r in records] == [("gru", TIME, True)]
    assert not watch.events


MASK = (torch.rand(BATCH, 1, generator=torch.Generator().manual_seed(2)) > 0.3).double()

BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "stacked and taken apart": lambda h: torch.stack([h, h])[0],
    "masked": lambda h: h * MASK,
    "cloned and viewed": lambda h: h.clone().view(-1).view(BATCH, SIZE),
    "written into a buffer": lambda h: torch.zeros(BATCH, 2, SIZE, dtype=h.dtype).index_copy(
        1, torch.tensor([1]), h[:, None]
    )[:, 1],
    "a few operations": lambda h: torch.relu(h * 0.9 + 0.1),
}


@pytest.mark.parametrize("way", BETWEEN)
@pytest.mark.parametrize("listed", [False, True])
def test_a_state_that_comes_back_changed(way: str, listed: bool, tmp_path: Path) -> None:
    """A state of one's own cell is followed through a few operations, also where PyTorch does not know of the cell."""
    model = Model(Plain(), over(lambda cell, x, h: cell(x, h), BETWEEN[way]), listed)
    watch, records = measure(model, tmp_path)
    agrees(model, records, ("h",))
    assert {r["module"] for r in records} == {"cells[0]" if listed else "cell"}
    assert not watch.events


@pytest.mark.parametrize("make", [lambda: nn.GRUCell(SIZE, SIZE), Plain, lambda: nn.RNNCell(SIZE, SIZE)])
def test_a_cell_in_a_plain_list(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """A cell that is no registered module is measured, named by the list that holds it."""
    model = Model(make(), over(lambda cell, x, h: cell(x, h)), listed=True)
    _, records = measure(model, tmp_path)
    agrees(model, records, ("h",))
    assert {r["module"] for r in records} == {"cells[0]"}


class Probe(pl.Callback):
    """Runs a cell of its own on each batch, beside the training."""

    def __init__(self, cell: nn.Module) -> None:
        self.cell = cell.double()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
        with torch.enable_grad():
            self.kept = over(lambda cell, x, h: cell(x, h))(self.cell, batch)


@pytest.mark.parametrize("make", [lambda: nn.GRUCell(SIZE, SIZE), Plain, lambda: nn.RNNCell(SIZE, SIZE)])
def test_a_cell_that_a_callback_runs_beside_the_training(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """It is no part of the model, and no loss of the training reaches it: nothing is told of it."""
    watch = GradWatch(every_n_steps=1, dirpath=tmp_path / "run")
    model = Model(Plain(), over(lambda cell, x, h: cell(x, h)))
    trainer(tmp_path, [Probe(make()), watch], max_steps=3).fit(model, data())
    assert watch.events == []
    assert {record["module"] for record in load_run(tmp_path / "run").profile_records} == {"rnn", "cell"}


class Exponential(nn.Module):
    """Three states and an output, in the manner of an sLSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(SIZE, 4 * SIZE), nn.Linear(SIZE, 4 * SIZE)

    def forward(self, x: Tensor, h: Tensor, memory: tuple[Tensor, Tensor, Tensor]) -> Any:
        c, n, m = memory
        i, f, z, o = (self.w(x) + self.u(h)).chunk(4, -1)
        new = torch.maximum(f + m, i)
        scale, keep = torch.exp(i - new), torch.exp(f + m - new)
        c, n = keep * c + scale * z.tanh(), keep * n + scale
        return o.sigmoid() * c / n.clamp_min(1e-3), (c, n, new)


def exponential(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
    h, memory, states = zeros(x), (zeros(x), zeros(x), zeros(x)), []
    for t in range(x.shape[1]):
        h, memory = cell(x[:, t], h, memory)
        states.append((h, *memory))
    return losses(states)


class Spiking(nn.Module):
    """Synapse and membrane, the membrane returned last."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor, syn: Tensor, mem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        syn = 0.8 * syn + self.v(x)
        mem = 0.9 * mem + torch.tanh(self.w(syn)) - 0.1 * mem**2
        return torch.sigmoid(5 * mem), syn, mem


def spiking(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
    syn, mem, states = zeros(x), zeros(x), []
    for t in range(x.shape[1]):
        _, syn, mem = cell(x[:, t], syn, mem)
        states.append((syn, mem))
    before, _, _ = losses([(mem, syn) for syn, mem in states])
    return before, states[-1][1].sin().sum(), states


class Pair(NamedTuple):
    c: Tensor
    h: Tensor


class Named(nn.Module):
    """(c, h) in a named tuple: not the order of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.ModuleDict({"w": nn.Linear(2 * SIZE, 3 * SIZE)})

    def forward(self, x: Tensor, state: Pair) -> Pair:
        f, z, o = self.cell["w"](torch.cat([x, state.h], -1)).chunk(3, -1)
        c = f.sigmoid() * state.c + z.tanh()
        return Pair(c, o.sigmoid() * c.tanh())


def named(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
    state, states = Pair(zeros(x), zeros(x)), []
    for t in range(x.shape[1]):
        state = cell(x[:, t], state)
        states.append((state.h, state.c))
    return losses(states)


def pytorchs(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
    h, c, states = zeros(x), zeros(x), []
    for t in range(x.shape[1]):
        h, c = cell(x[:, t], (h, c))
        states.append((h, c))
    return losses(states)


SEVERAL: dict[str, tuple[Callable[[], nn.Module], Run, tuple[str, ...]]] = {
    "h and three of memory": (Exponential, exponential, ("h", "memory[0]", "memory[1]", "memory[2]")),
    "synapse and membrane": (Spiking, spiking, ("syn", "mem")),
    "c and h in a named tuple": (Named, named, ("h", "c")),
    "nn.LSTMCell, with a loss on c": (lambda: nn.LSTMCell(SIZE, SIZE), pytorchs, ("h", "c")),
}


@pytest.mark.parametrize("way", SEVERAL)
def test_several_states(way: str, tmp_path: Path) -> None:
    """Each state is measured under its own name; the lagged gradient is that of all of them together."""
    make, run, names = SEVERAL[way]
    model = Model(make(), run)
    watch, records = measure(model, tmp_path)
    agrees(model, records, names)
    assert [r["primary"] for r in records] == [True] + [False] * (len(names) - 1)
    assert {place[0] for place in watch.lagged} == {"cell", "rnn"}


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + self.conv(h))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.3 * torch.randn(2, SIZE, SIZE))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + torch.einsum("bhi,hij->bhj", h, self.w))


@pytest.mark.parametrize(
    ("make", "shape"), [(Convolutional, (2, 4, 5)), (Heads, (2, SIZE)), (lambda: Plain(5), (2, 3, 5))]
)
def test_a_state_of_more_dimensions(make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    """The sequences are the batch; a norm is over all other dimensions."""
    model = Model(make(), over(lambda cell, x, h: cell(x, h)))
    _, records = measure(model, tmp_path, *shape)
    agrees(model, records, ("h",))


def again(how: str) -> Run:
    """A cell that is called again with the state of each timestep."""

    def run(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
        h, states, others = zeros(x), [], []
        for t in range(x.shape[1]):
            first = cell(x[:, t], h)
            second = cell(x[:, t], h + 0.1 if how == "perturbed" else h)
            h = second if how == "goes on" else first
            states.append((h,))
            if how != "unused":
                others.append((first if how == "goes on" else second).square().mean())
        before, last, _ = losses(states)
        return before + sum(others, torch.zeros((), dtype=torch.float64)), last, states

    return run


@pytest.mark.parametrize("how", ["unused", "used", "perturbed", "goes on"])
@pytest.mark.parametrize("make", [Plain, lambda: nn.GRUCell(SIZE, SIZE)])
def test_a_cell_called_twice_with_one_state(how: str, make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """It is one recurrence of that many timesteps, whichever of the calls it goes on from, and whatever the other is used for."""
    model = Model(make(), again(how))
    _, records = measure(model, tmp_path)
    assert len(records) == 1
    agrees(model, records, ("h",))


def mixed(how: str) -> Run:
    def run(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
        h, states = zeros(x), []
        for t in range(x.shape[1]):
            first, second = cell(x[:, t], h), cell(x[:, t], h)
            h = (
                (first + second) / 2
                if how == "mean"
                else first - 0.0 * second
                if how == "difference"
                else first.where(x[:, t] > 0, second)
            )
            states.append((first,))
        return losses([*states[:-1], (h,)])

    return run


@pytest.mark.parametrize("how", ["mean", "difference", "one or the other"])
def test_results_of_several_calls_that_are_mixed(how: str, tmp_path: Path) -> None:
    """It is one recurrence of that many timesteps, and says why its figures are not exact."""
    _, records = measure(Model(Plain(), mixed(how)), tmp_path)
    assert [(r["timesteps"], r["exact"]) for r in records] == [(TIME, False)]
    assert "called more than once in a timestep" in records[0]["inexact_reason"]


def test_two_calls_one_after_the_other(tmp_path: Path) -> None:
    """Two calls a timestep, the second with the first one's state, are two timesteps."""

    def run(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
        h, states = zeros(x), []
        for t in range(x.shape[1]):
            for _ in range(2):
                h = cell(x[:, t], h)
                states.append((h,))
        return losses(states)

    model = Model(Plain(), run)
    _, records = measure(model, tmp_path)
    agrees(model, records, ("h",))
    assert records[0]["timesteps"] == 2 * TIME


@pytest.mark.parametrize("in_turn", [False, True])
def test_one_cell_over_two_sequences(in_turn: bool, tmp_path: Path) -> None:
    """Two sequences that begin with the same state, in lockstep or one after the other, stay two."""

    def run(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
        start = zeros(x)
        a, b, states = start, start, []
        for t in range(x.shape[1]):
            a = cell(x[:, t], a)
            b = b if in_turn else cell(-x[:, t], b)
            states.append((a,))
        for t in range(x.shape[1] if in_turn else 0):
            b = cell(-x[:, t], b)
        before, last, _ = losses(states)
        return before + b.square().mean(), last, states

    model = Model(Plain(), run)
    _, records = measure(model, tmp_path)
    assert [(r["call"], r["timesteps"]) for r in records] == [(0, TIME), (1, TIME)]
    agrees(model, records[:1], ("h",))


@pytest.mark.parametrize("make", [Plain, lambda: nn.GRUCell(SIZE, SIZE), lambda: nn.RNNCell(SIZE, SIZE)])
def test_a_loop_of_one_timestep(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Its lagged curve is 1 at lag 0."""

    def run(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
        h = cell(x[:, 0], zeros(x))
        return torch.zeros(()).double(), h.square().mean(), [(h,)]

    watch = GradWatch(["cell"], every_n_steps=1, summary=False, dirpath=tmp_path / "run")
    trainer(tmp_path, [watch], max_steps=2).fit(Model(make(), run), data())
    records = load_run(tmp_path / "run").profile_records
    assert [(r["timesteps"], r["lagged"]) for r in records] == [(1, [1.0])] * 2


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.size(1)):
            h = torch.tanh(x[:, t] + self.w(h))
        return h


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.GRU(SIZE, SIZE, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)[0]


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.GRUCell(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x[:, 0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(
    ("make", "name"), [(Scripted, "cell"), (Holds, "cell.part"), (Steps, "cell.part")], ids=["loop", "fused", "cell"]
)
def test_what_torchscript_holds_is_told(make: Callable[[], nn.Module], name: str, tmp_path: Path) -> None:
    """A scripted module with a recurrence inside is named beside an nn.LSTM, whatever its class is called, with a remedy that helps."""

    def run(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
        made = cell(x)
        return torch.zeros(()).double(), made.square().mean(), [(made,)]

    watch, records = measure(Model(torch.jit.script(make().double()), run), tmp_path)
    assert not records
    (event,) = (e for e in watch.events if e.kind == EventKind.NOT_OBSERVED)
    assert (event.module, "TorchScript holds it" in event.message) == (name, True)
    assert "unscripted" in event.remedy


class TestNothingToBeFound:
    """What is no recurrence is not taken for one."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.ReLU(),
            lambda: nn.LayerNorm(SIZE),
            lambda: nn.Flatten(1),
            lambda: nn.Identity(),
        ],
        ids=["an activation", "a norm", "a view", "nothing"],
    )
    def test_a_layer_shared_between_others(self, make: Callable[[], nn.Module], tmp_path: Path) -> None:
        """A layer that serves several others has no state."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.shared = make()
                self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(4))

            def forward(self, x: Tensor) -> Tensor:
                for layer in self.layers:
                    x = self.shared(layer(x))
                return x

        def run(cell: Any, x: Tensor) -> tuple[Tensor, Tensor, States]:
            made = cell(x[:, 0])
            return torch.zeros(()).double(), made.square().mean(), [(made,)]

        watch, records = measure(Model(Net(), run), tmp_path)
        assert not records
        assert not [e for e in watch.events if e.module != "rnn"]


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_model_with_nothing_recurrent(spoilt: bool, tmp_path: Path, recwarn, caplog) -> None:
    """It gets one line and no more, and is not left alone: a loss that is not finite is told all the same."""

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(SIZE, 1).double()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.layer(batch).square().mean() * (float("nan") if spoilt and batch_idx == 1 else 1.0)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    watch = GradWatch(dirpath=tmp_path / "run")
    trainer(tmp_path, [watch], max_steps=3).fit(Net(), data())
    said = [str(w.message) for w in recwarn if "GradWatch" in str(w.message)]
    assert sum("found no recurrent module" in line for line in said) == 1
    assert "Take it out" in said[0]
    if not spoilt:
        assert not watch.events
        assert not any("GradWatch" in record.message for record in caplog.records)


class Teacher(pl.Callback):
    """Runs a recurrence of its own beside the model's, which the model's loss never reaches."""

    def on_before_backward(self, *_: Any) -> None:
        cell, h = nn.GRUCell(3, 4), torch.zeros(2, 4)
        for _ in range(5):
            h = cell(torch.randn(2, 3), h)
        h.sum().backward()


def test_a_recurrence_that_is_no_part_of_the_model_is_not_reported(tmp_path) -> None:
    """Another model that is run beside it trains nothing of it, so nothing is said of it."""
    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run", summary=False)
    trainer(tmp_path, callbacks=[watch, Teacher()], max_steps=4).fit(TinyLanguageModel(), sentences())
    assert [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED] == []
