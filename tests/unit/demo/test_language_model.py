"""The demo's language model, cell by cell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch.demo.language_model import CELLS, Cell, RecurrentLanguageModel

MODULES = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "options", [{}, {"tied": True}, {"layers": 2, "dropout": 0.2}, {"optimizer": "sgd", "lr": 1.0}, {"embedding": 7}]
)
def test_a_few_steps_learn_a_repeating_pattern(cell: Cell, options: dict[str, object]) -> None:
    """Whatever the cell and the options, the loss on one batch falls by half."""
    torch.manual_seed(0)
    model = RecurrentLanguageModel(6, cell, hidden=16, **{"lr": 0.02, **options})  # type: ignore[arg-type]
    words = torch.arange(24).remainder(6).expand(4, -1)
    batch = (words[:, :-1], words[:, 1:])
    optimizer = model.configure_optimizers()
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # no Trainer here
    losses: list[float] = []
    for step in range(60):
        loss = model.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert type(model.recurrent) is MODULES[cell]
    assert losses[-1] < losses[0] / 2


def test_tied_weights_are_one_parameter() -> None:
    """The softmax and the embedding share their weight, and sizes that differ are an error."""
    model = RecurrentLanguageModel(6, hidden=16, tied=True)
    assert model.output.weight is model.embedding.weight
    with pytest.raises(ValueError, match=r"`embedding` must equal `hidden` \(16\).*found 8"):
        RecurrentLanguageModel(6, hidden=16, embedding=8, tied=True)


@pytest.mark.parametrize("cell", CELLS)
def test_the_spectral_radius_is_the_one_asked_for(cell: Cell) -> None:
    """Each gate's recurrent weight starts as that many times an orthogonal matrix, in every layer."""
    model = RecurrentLanguageModel(6, cell, hidden=8, layers=2, spectral_radius=1.3)
    for layer in range(2):
        for gate in getattr(model.recurrent, f"weight_hh_l{layer}").split(8):
            assert torch.allclose(gate @ gate.T, 1.69 * torch.eye(8), atol=1e-5)


def test_the_gate_bias_makes_gated_cells_remember() -> None:
    """It moves the forget gate of an LSTM and the update gate of a GRU by as much as asked, and no other bias."""
    for cell in CELLS:
        biases: list[torch.Tensor] = []
        for gate_bias in (0.0, 1.5):
            torch.manual_seed(0)
            model = RecurrentLanguageModel(6, cell, hidden=4, gate_bias=gate_bias)
            biases.append((model.recurrent.bias_ih_l0 + model.recurrent.bias_hh_l0).detach())
        moved = biases[1] - biases[0]
        expected = torch.zeros_like(moved)
        if cell != "rnn":
            expected[4:8] = 1.5
        assert torch.allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_generation_goes_on_from_its_own_words(cell: Cell) -> None:
    """A model that has learned to count goes on counting, and the seed alone decides what it draws."""
    torch.manual_seed(0)
    model = RecurrentLanguageModel(6, cell, hidden=16, lr=0.02)
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    words = torch.arange(24).remainder(6).expand(4, -1)
    optimizer = model.configure_optimizers()
    for step in range(80):
        optimizer.zero_grad()
        model.training_step((words[:, :-1], words[:, 1:]), step).backward()
        optimizer.step()
    drawn = model.generate(torch.arange(12).remainder(6), 9, torch.Generator().manual_seed(0), temperature=0.2)
    assert drawn.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert model.generate(torch.arange(3), 0, torch.Generator()).shape == (0,)
