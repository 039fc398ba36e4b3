"""What the loss sends to recurrent modules, beside autograd's own gradients of their outputs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_gradwatch.recurrent.capture.direct_norm import DirectNorms

KINDS = [nn.RNN, nn.LSTM, nn.GRU]


def attached(model: nn.Module) -> tuple[DirectNorms, list[Tensor]]:
    norms = DirectNorms()
    norms.attach(model)
    parameters = list(model.parameters())
    return norms, [parameters[place] for place in norms.recurrent(parameters)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_it_is_the_norm_of_the_gradient_of_the_output(kind: type[nn.RNNBase], packed: bool) -> None:
    """As autograd gives it for the output itself, summed over two calls; then it begins anew."""
    model = kind(3, 4, num_layers=2)
    norms, weights = attached(model)
    assert len(weights) == 2
    square, loss = 0.0, torch.zeros(())
    for seed in range(2):
        x: Any = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(seed))
        output = model(pack_padded_sequence(x, torch.tensor([5, 3])) if packed else x)[0]
        output = output.data if packed else output
        part = (output**2).sum()
        square += float(torch.autograd.grad(part, output, retain_graph=True)[0].square().sum())
        norms.take(weights)  # what that call of autograd has sent
        loss = loss + part
    loss.backward()
    taken = norms.take(weights)
    assert taken is not None
    torch.testing.assert_close(float(taken), square**0.5)
    assert norms.take(weights) is None
    norms.detach()
    assert not model._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_on_the_last_state_alone_is_seen(kind: type[nn.RNNBase]) -> None:
    """Where the output is not used, what arrives at the last hidden state is direct."""
    model = kind(3, 4)
    norms, weights = attached(model)
    state = model(torch.randn(5, 2, 3))[1]
    (state[0] if isinstance(state, tuple) else state).sum().backward()
    taken = norms.take(weights)
    assert taken is not None
    torch.testing.assert_close(float(taken), 8**0.5)
    norms.detach()


def test_a_loop_over_a_module_is_not_told() -> None:
    """A call that goes on from another's state gets gradients through time at its output; a state without a gradient does not matter."""
    model = nn.GRU(3, 4)
    norms, weights = attached(model)
    output, state = model(torch.randn(1, 2, 3))
    output, _ = model(torch.randn(1, 2, 3), hx=state)
    output.sum().backward()
    assert norms.take(weights) is None
    model(torch.randn(1, 2, 3), torch.zeros(1, 2, 4))[0].sum().backward()
    assert norms.take(weights) is not None
    norms.detach()


def test_a_copy_is_inert_and_gradients_are_the_same() -> None:
    """Copied and pickled models carry hooks that do nothing; the gradients are those without hooks, to the bit."""
    model = nn.LSTM(3, 4)
    bare, x = copy.deepcopy(model), torch.randn(5, 2, 3)
    norms, weights = attached(model)
    for one in (model, bare, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        one(x)[0].square().sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), one.parameters(), strict=True))  # type: ignore[arg-type]
    assert norms.take(weights) is not None
    assert norms.take(weights) is None
    norms.detach()


def test_nothing_is_hooked_where_there_is_no_recurrence_or_something_is_compiled() -> None:
    """A perceptron has no recurrent weights; a model of which a part is compiled is left alone."""
    assert attached(nn.Linear(2, 2))[1] == []
    part = nn.Linear(4, 1)
    part.compile(backend="eager")
    model = nn.ModuleList([nn.RNN(3, 4), part])
    assert attached(model)[1] == []
    assert not model[0]._forward_hooks


def test_an_output_of_another_form_is_not_told_and_harms_nothing() -> None:
    """A subclass that returns its output alone, or in a dictionary, trains on; nothing is told of it."""

    class Alone(nn.GRU):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return {"output": super().forward(x)[0]}

    model = Alone(3, 4)
    norms, weights = attached(model)
    model(torch.randn(5, 2, 3))["output"].sum().backward()
    assert norms.take(weights) is None
    assert model.weight_hh_l0.grad is not None
    norms.detach()
