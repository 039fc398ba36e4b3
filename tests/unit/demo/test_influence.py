"""The demo's sentence: what was measured is what autograd says, and the model stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from lightning_gradwatch.demo.agreement import NUMBERS, WORDS
from lightning_gradwatch.demo.influence import SENTENCE, VERB, Influences, draw, influence_on_verb
from lightning_gradwatch.demo.language_model import CELLS, RecurrentLanguageModel
from tests.asserts import assert_identical


@pytest.mark.parametrize("cell", CELLS)
def test_it_is_the_gradient_of_the_embedded_words(cell) -> None:
    """Of the verb's loss alone."""
    model = RecurrentLanguageModel(len(WORDS), cell, embedding=6, hidden=8).eval()
    before = copy.deepcopy(dict(model.state_dict()))
    found = influence_on_verb(model)
    assert_identical(dict(model.state_dict()), before)
    assert not model.training
    numbers = torch.tensor([[NUMBERS[word] for word in SENTENCE[: VERB + 1]]])
    x = model.embedding(numbers[:, :-1]).detach().requires_grad_()
    output = model.train().recurrent(x)[0]
    loss = functional.cross_entropy(model.output(output)[:, -1], numbers[:, -1])
    (gradient,) = torch.autograd.grad(loss, x)
    assert found == pytest.approx(gradient[0].norm(dim=1).tolist(), rel=1e-5)


def test_it_is_drawn(tmp_path) -> None:
    """A PNG, two rows a network."""
    values = tuple(float(place + 1) for place in range(VERB))
    path = draw([("RNN", Influences(values, values))], tmp_path / "sentence.png")
    assert path.read_bytes().startswith(b"\x89PNG")
