"""A comparison of starts measures what autograd says, and leaves no trace."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import compare_starts, initialise_
from lightning_gradwatch.recurrent.capture.modules import discover
from lightning_gradwatch.starts.layer_weights import layers_of
from lightning_gradwatch.starts.predicted import predicted_horizon
from tests.asserts import assert_identical

T = 24


class Net(nn.Module):
    """A recurrent layer with all that a comparison could spoil: dropout, running statistics, a carried state."""

    def __init__(self, kind: str = "LSTM", **options) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.rnn = getattr(nn, kind)(3, 12, batch_first=True, **options)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(12 * (1 + self.rnn.bidirectional), 1)
        self.carried = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        output = self.rnn(self.norm(x.flatten(0, 1)).view_as(x))[0]
        self.carried = self.carried + output.detach().sum()
        return self.head(self.drop(output[:, -1]))


def squared(model: nn.Module, batch: Tensor) -> Tensor:
    batch.add_(0.5)  # a batch that is changed in place is a copy
    return (model(batch) - torch.rand(()) - random.random() - np.random.random()).square().mean()


def everything(model: Net, batch: Tensor) -> list[object]:
    return [
        dict(copy.deepcopy(model.state_dict())),
        [copy.deepcopy(parameter.grad) for parameter in model.parameters()],
        model.carried.clone(),
        [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        batch.clone(),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    ]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(training: bool) -> None:
    """Weights, gradients, buffers, attributes, modes, hooks, batch and random generators."""
    model, batch = Net().train(training), torch.randn(4, T, 3)
    squared(model, batch.clone()).backward()
    before = everything(model, batch)
    compare_starts(model, batch, loss=squared)
    assert_identical(before, everything(model, batch))


def test_nothing_changes_where_the_loss_fails() -> None:
    """On the way out of an error in the second start, too."""
    model, batch, calls = Net(), torch.randn(4, T, 3), []

    def fails(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(squared(model, batch))
        if len(calls) == 2:
            raise RuntimeError("of the user's own")
        return calls[-1]

    before = everything(model, batch)
    with pytest.raises(RuntimeError, match="own"):
        compare_starts(model, batch, loss=fails)
    assert_identical(before, everything(model, batch))


@pytest.mark.parametrize("start", ["as it is", "gate_bias"])
def test_the_curve_is_that_of_autograd(start: str) -> None:
    """One sequence, unrolled with PyTorch's own cell."""
    model = nn.GRU(3, 6, batch_first=True).double()
    x = torch.randn(1, T, 3, dtype=torch.float64)
    (row,) = [r for r in compare_starts(model, x, ["gate_bias"], loss=last_output) if r.start == start]
    if start == "gate_bias":
        initialise_(model, start, timesteps=T)
    cell = nn.GRUCell(3, 6).double()
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in model.state_dict().items()})
    states = [torch.zeros(1, 6, dtype=torch.float64)]
    for t in range(T):
        states.append(cell(x[:, t], states[-1]))
    gradients = torch.autograd.grad(states[-1].square().sum(), states[:0:-1])
    norms = np.array([gradient.norm().item() for gradient in gradients])
    assert row.inexact_reason is None
    assert np.allclose(row.lagged, norms / norms[0], rtol=1e-10)
    weights = torch.autograd.grad(last_output(model, x), model.weight_hh_l0)[0]
    assert np.isclose(row.weight_gradient, weights.norm().item(), rtol=1e-10)


def last_output(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)[0][:, -1].square().sum()


def test_each_layer_and_direction_has_its_rows() -> None:
    """Of the starts that are for it, the model as it is first."""
    found = compare_starts(Net("GRU", num_layers=2, bidirectional=True), torch.randn(4, T, 3), loss=squared)
    assert found.starts == ["as it is", "pytorch", "gate_bias", "chrono", "uniform_gates", "orthogonal"]
    assert len(found) == 6 * 4
    assert {(row.layer, row.direction) for row in found} == {(n, d) for n in (0, 1) for d in ("forward", "reverse")}
    assert found.timesteps == {"rnn": T}
    text = str(found)
    assert text.count("chrono") == 4
    assert "rnn, layer 1, reverse (GRU, 24 timesteps)" in text


@pytest.mark.parametrize("why", ["frozen", "unused", "no_grad"])
def test_a_module_that_was_not_measured_is_named(why: str) -> None:
    """Beside one that was, under the table; where all were, no such line stands there."""
    nets = nn.ModuleDict({"a": Net(), "b": Net()})
    nets["b"].rnn.requires_grad_(why != "frozen")

    def loss(nets: nn.Module, batch: Tensor) -> Tensor:
        if why == "unused":
            return squared(nets["a"], batch)
        with torch.set_grad_enabled(why != "no_grad"):
            aside = nets["b"].rnn(batch.clone())[0].mean()
        return squared(nets["a"], batch) + aside

    compared = compare_starts(nets, torch.randn(4, T, 3), ["gate_bias"], loss=loss)
    assert compared.missing == ("b.rnn",)
    assert {row.module for row in compared} == {"a.rnn"}
    assert "Nothing was measured in b.rnn: frozen, not used" in str(compared)
    assert "Nothing was measured" not in str(compare_starts(nets["a"], torch.randn(4, T, 3), [], loss=squared))


def test_a_longer_memory_is_seen() -> None:
    """The gate of a GRU that is opened to the length reaches further than PyTorch's own start."""
    rows = {row.start: row for row in compare_starts(Net("GRU"), torch.randn(4, 60, 3), loss=squared)}
    assert not rows["as it is"].censored
    assert rows["as it is"].horizon < 20 < rows["gate_bias"].horizon


@pytest.mark.parametrize(("bias", "timesteps"), [(0.0, 7), (1.0, 15), (3.0, 95)])
def test_the_prediction_is_that_of_the_forget_gate(bias: float, timesteps: int) -> None:
    """σ(b)^T: bias 0 leaves 1 % after 7 steps, 1 after 15, 3 after 95."""
    module = nn.LSTM(3, 8)
    with torch.no_grad():
        module.bias_ih_l0[8:16], module.bias_hh_l0[8:16] = bias, 0.0
    assert [predicted_horizon(place) for place in layers_of(module)] == [timesteps]


def test_where_only_the_forget_gate_acts_the_growth_rate_is_its_logarithm() -> None:
    """Without recurrent weights, and with inputs too small to move a gate, measured and predicted agree."""
    module = nn.LSTM(3, 32, batch_first=True).double()
    with torch.no_grad():
        module.weight_hh_l0.zero_()
        module.bias_ih_l0.zero_(), module.bias_hh_l0.zero_()
        module.bias_ih_l0[32:64] = 2.0
    (row,) = compare_starts(module, 1e-3 * torch.randn(4, 200, 3, dtype=torch.float64), [], loss=last_output)
    slopes = np.diff(np.log(row.lagged[1:60]))
    assert np.allclose(slopes, np.log(1 / (1 + np.exp(-2.0))), rtol=1e-2)


def test_a_lightning_module_needs_no_loss() -> None:
    """Its training step is asked, with what it logs going nowhere."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch):
            loss = squared(self.net, batch)
            self.log("loss", loss)
            return {"loss": loss}

    assert compare_starts(Module(), torch.randn(4, T, 3)).starts[0] == "as it is"


def test_cells_are_compared_too() -> None:
    """A loop over nn.GRUCell is as long as it was run."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 12)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 12)
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
            return h

    found = compare_starts(Loop(), torch.randn(4, T, 3), loss=lambda model, x: model(x).square().mean())
    assert found.timesteps == {"cell": T}
    assert "gate_bias" in found.starts


@pytest.mark.parametrize(
    ("model", "loss", "says"),
    [
        (nn.Linear(3, 1), squared, "`model` must be one with an nn.RNN"),
        (nn.LSTM(3, 4), None, "`model` must be a LightningModule, or come with `loss`"),
        (nn.LSTM(3, 4), lambda m, x: m(x)[0], "`loss` must be one number"),
        (nn.LSTM(3, 4), lambda m, x: 3.0, "`loss` must be one number"),
    ],
)
def test_a_wrong_argument_is_named(model: nn.Module, loss, says: str) -> None:
    """The argument, the rule, the value and what to do."""
    with pytest.raises(ValueError, match="must be") as error:
        compare_starts(model, torch.randn(4, T, 3), loss=loss)
    assert says in str(error.value)


def test_what_cannot_be_copied_is_said() -> None:
    """A model that holds a generator."""
    model = Net()
    model.stream = (n for n in range(3))
    with pytest.raises(ValueError, match="`model` must be something that can be copied"):
        compare_starts(model, torch.randn(4, T, 3), loss=squared)


def test_the_picture_has_a_line_a_start() -> None:
    """And one at 1 %."""
    pytest.importorskip("matplotlib")
    model = Net()
    found = compare_starts(model, torch.randn(4, T, 3), loss=squared)
    assert [line.get_label() for line in found.plot().get_lines()[:-1]] == found.starts
    with pytest.raises(ValueError, match="must name a measured layer; there are rnn, layer 0"):
        found.plot(layer=3)
    assert list(discover(model)) == ["rnn"]
