"""ncps, snntorch and torchrecurrent, whose recurrences are loops of cells that PyTorch does not know: what is observed of them, and
what is told."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, load_run, tap
from tests.asserts import assert_identical
from tests.models import trainer

STEPS, TIMESTEPS = 4, 12
NEURONS = {"Leaky": {"beta": 0.9}, "Synaptic": {"alpha": 0.9, "beta": 0.8}, "Alpha": {"alpha": 0.9, "beta": 0.8}}


class Watched(pl.LightningModule):
    """A loss on the last timestep. Of each state that a loop hands on it keeps the gradient that autograd gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.truth: dict[tuple[int, int, int], torch.Tensor] = {}

    def hear(self, cell: nn.Module, slots: tuple[int, ...]) -> None:
        """Keep the gradients of these outputs of a cell, call by call; ncps calls its cells past their hooks."""
        forward, calls = cell.forward, [0, -1]

        def heard(*inputs: Any) -> Any:
            outputs, step = forward(*inputs), self.global_step
            calls[:] = [calls[0] + 1, step] if calls[1] == step else [0, step]
            for slot in slots:
                key = (step, slot, calls[0])
                outputs[slot].register_hook(lambda gradient, key=key: self.truth.update({key: gradient.clone()}))
            return outputs

        cell.forward = heard

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.head(self.last(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Liquid(Watched):
    """One of ncps's recurrent layers."""

    def __init__(self, make: Any, width: int) -> None:
        super().__init__()
        self.rnn, self.head = make(), nn.Linear(width, 1)

    def last(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0][:, -1]


class Stack(Liquid):
    """One of torchrecurrent's, whose cells are called as modules: there a hook of one's own hears them."""

    def hear(self, cell: nn.Module, slots: tuple[int, ...]) -> None:
        calls = [0, -1]

        def heard(module: nn.Module, inputs: Any, outputs: Any) -> None:
            calls[:] = [calls[0] + 1, calls[1]] if calls[1] == self.global_step else [0, self.global_step]
            for slot in slots:
                key = (self.global_step, slot, calls[0])
                state = outputs if isinstance(outputs, torch.Tensor) else outputs[slot]
                if state.requires_grad:
                    state.register_hook(lambda gradient, key=key: self.truth.update({key: gradient.clone()}))

        cell.register_forward_hook(heard)


class Spiking(Watched):
    """One of snntorch's neurons, its states in the user's hands."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        snntorch = pytest.importorskip("snntorch")
        self.current, self.neuron, self.head = (
            nn.Linear(3, 8),
            getattr(snntorch, kind)(**NEURONS[kind]),
            nn.Linear(8, 1),
        )
        self.begin = getattr(self.neuron, f"init_{kind.lower()}")

    def last(self, x: torch.Tensor) -> torch.Tensor:
        states: Any = self.begin()
        states = states if isinstance(states, tuple) else (states,)
        for t in range(x.shape[1]):
            _, *states = self.neuron(self.current(x[:, t]), *states)
        return states[-1]


class Hidden(Spiking):
    """A neuron that keeps its state to itself, marked by ``tap``."""

    def __init__(self) -> None:
        super().__init__("Leaky")
        snntorch = pytest.importorskip("snntorch")
        self.neuron = snntorch.Leaky(beta=0.9, init_hidden=True)

    def last(self, x: torch.Tensor) -> torch.Tensor:
        self.neuron.reset_mem()
        for t in range(x.shape[1]):
            self.neuron(self.current(x[:, t]))
            tap(self.neuron.mem, name="neuron")
        return self.neuron.mem


def fit(make: Any, tmp_path: Any, *callbacks: Any) -> tuple[Watched, dict[str, Any]]:
    """A few steps from a fixed seed."""
    torch.manual_seed(0)
    np.random.seed(0)  # which ncps begins with
    model = make()
    x = torch.randn(7 * STEPS, TIMESTEPS, 3)
    run = trainer(tmp_path, callbacks, max_steps=STEPS)
    run.fit(model, DataLoader(TensorDataset(x, x[:, 0, :1]), batch_size=7))
    return model, {"weights": model.state_dict(), "rng": torch.get_rng_state()}


def liquid(kind: str, wired: bool = False, **options: Any) -> Any:
    """What makes a model of one of ncps's layers; its wiring, too, is drawn anew each time."""
    layers, wirings = pytest.importorskip("ncps.torch"), pytest.importorskip("ncps.wirings")

    def layer() -> nn.Module:
        return getattr(layers, kind)(3, wirings.AutoNCP(6, 2) if wired else 6, **options)

    return lambda: Liquid(layer, 2 if wired else 6)


LIQUID = {
    "CfC": {"kind": "CfC"},
    "CfC, pure": {"kind": "CfC", "mode": "pure"},
    "CfC, no gate": {"kind": "CfC", "mode": "no_gate"},
    "CfC, wired": {"kind": "CfC", "wired": True},
    "LTC, wired": {"kind": "LTC", "wired": True},
}


def assert_totals_are_autograds(make: Any, tmp_path: Any, cell: str, slots: dict[str, int]) -> list[dict[str, Any]]:
    """The cell is observed, exactly, with the gradients that a hook of the user's own sees; not a bit of the training changes.

    Returns:
        What was recorded of all cells.
    """
    heard = []

    def listening() -> Watched:
        heard.append(make())
        heard[0].hear(heard[0].get_submodule(cell), tuple(slots.values()))
        return heard[0]

    model, _ = fit(listening, tmp_path / "heard")
    watch = GradWatch(every_n_steps=1, max_sequences=None, keep_sequences=True, summary=False, dirpath=tmp_path / "run")
    assert_identical(fit(make, tmp_path)[1], fit(make, tmp_path, watch)[1])
    everything = load_run(tmp_path / "run").profile_records
    assert all(record["exact"] for record in everything)
    records = [record for record in everything if record["module"] == cell]
    assert {record["state"] for record in records} == set(slots)
    assert {record["step"] for record in records} >= set(range(1, STEPS))
    for record in records:
        found = torch.tensor(record["total_by_sequence"])
        slot = slots[record["state"]]
        none = torch.zeros(7, 1)  # what the loss does not reach
        gradients = [model.truth.get((record["step"], slot, t), none) for t in range(TIMESTEPS)]
        truth = torch.stack([gradient.norm(dim=-1) for gradient in gradients], dim=1)
        assert truth.any()
        assert torch.allclose(found.to(truth.dtype), truth, rtol=1e-4, atol=1e-9)
        assert len(record["lagged"]) >= TIMESTEPS - 1  # a wired CfC answers past its last state
    return everything


@pytest.mark.parametrize("name", LIQUID)
def test_ncps(name, tmp_path) -> None:
    """Closed-form and liquid time-constant cells, wired or not."""
    records = assert_totals_are_autograds(liquid(**LIQUID[name]), tmp_path, "rnn.rnn_cell", {"h": 1})
    assert {record["module"] for record in records} == {"rnn.rnn_cell"}


@pytest.mark.parametrize(
    "options", [{"kind": "CfC"}, {"kind": "CfC", "wired": True}, {"kind": "LTC", "wired": True}], ids=str
)
def test_ncps_with_a_memory_of_its_own(options, tmp_path) -> None:
    """Of the LSTM before the cell only c is handed on as it is: it has its own name, and none that is h's."""
    assert_totals_are_autograds(liquid(**options, mixed_memory=True), tmp_path, "rnn.lstm", {"states[1]": 1})


@pytest.mark.parametrize(
    ("kind", "slots"),
    [("Leaky", {"h": 1}), ("Synaptic", {"syn": 1, "mem": 2}), ("Alpha", {"syn_exc": 1, "syn_inh": 2, "mem": 3})],
)
def test_snntorch(kind, slots, tmp_path) -> None:
    """Spiking neurons: each state by its name, its gradient that of the surrogate."""
    pytest.importorskip("snntorch")
    records = assert_totals_are_autograds(lambda: Spiking(kind), tmp_path, "neuron", slots)
    assert {record["module"] for record in records} == {"neuron"}


TWO = {"state[0]": 0, "state[1]": 1}
STACKS = {
    "MGU": {"h": 0},
    "BR": {"h": 0},
    "PeepholeLSTM": TWO,
    "LEM": TWO,
    "UnICORNN": TWO,  # its states are moved on by a sum, through which a layer's input hangs on the layer below too
    "JANET": {"h": 0},  # its two states are one tensor
}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", STACKS)
def test_torchrecurrent(name, layer, tmp_path) -> None:
    """Two layers, whose states come back as slices of a stack: each cell is its own, with each of its states."""
    stack = getattr(pytest.importorskip("torchrecurrent"), name)

    def make() -> Stack:
        return Stack(lambda: stack(3, 8, num_layers=2, batch_first=True), 8)

    records = assert_totals_are_autograds(make, tmp_path, f"rnn.cells.{layer}", STACKS[name])
    assert {record["module"] for record in records} == {"rnn.cells.0", "rnn.cells.1"}


def test_a_neuron_that_keeps_its_state_is_marked(tmp_path) -> None:
    """With ``tap`` in the loop it is measured as if its state had been handed on."""
    pytest.importorskip("snntorch")
    logs = {}
    for make in (Hidden, lambda: Spiking("Leaky")):
        watch = GradWatch(every_n_steps=1, summary=False, dirpath=tmp_path / f"run{len(logs)}")
        fit(make, tmp_path, watch)
        logs[len(logs)] = load_run(watch.run_dir).profile_records
    by_step = [{record["step"]: record for record in log} for log in logs.values()]
    for step in range(1, STEPS):
        marked, handed = (log[step] for log in by_step)
        assert marked["exact"]
        assert marked["total"] == pytest.approx(handed["total"], rel=1e-4)
        assert marked["lagged"] == pytest.approx(handed["lagged"], rel=1e-4)
