"""A comparison of starts leaves the model as it was, whatever the model is and however it ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

from lightning_gradwatch import compare_starts
from tests.asserts import assert_identical

BATCH = torch.linspace(-1, 1, 3 * 8 * 4).view(3, 8, 4)


class Net(nn.Module):
    """Running statistics, a recurrent layer, dropout, a head."""

    def __init__(self, rnn: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.rnn = rnn or nn.LSTM(4, 6, batch_first=True)
        self.drop, self.head = nn.Dropout(0.3), head or nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.drop(self.rnn(x)[0][:, -1]))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    draws = torch.rand(()) + random.random() + np.random.random()
    return model(batch.to(model.norm.weight.dtype)).float().square().mean() + draws


def everything(model: nn.Module) -> list[Any]:
    """All that could be left changed."""
    weights = {n: w for n, w in model.state_dict(keep_vars=True).items() if not nn.parameter.is_lazy(w)}
    hooks = [{name: list(value) for name, value in vars(m).items() if "hooks" in name} for m in model.modules()]
    return [
        {name: weight.detach().clone() for name, weight in weights.items()},
        [weight.grad for weight in model.parameters()],
        [id(weight) for weight in (*model.parameters(), *model.buffers())],
        [(type(module), module.training) for module in model.modules()],
        [str(one) for one in hooks],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        [torch.is_grad_enabled(), id(torch.autograd.backward)],
    ]


class Stop:
    """Raises at the n-th time."""

    def __init__(self, error: BaseException, at: int) -> None:
        self.error, self.left = error, at

    def __deepcopy__(self, memo: object) -> Stop:
        return self  # a copy of the model counts on

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            torch.rand(3)
            raise self.error


HOOKS: dict[str, Callable[[Net, Stop], object]] = {
    "before the forward": lambda net, stop: net.rnn.register_forward_pre_hook(stop),
    "after it": lambda net, stop: net.rnn.register_forward_hook(stop),
    "in the backward pass": lambda net, stop: net.head.register_full_backward_hook(stop),
}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("at", [1, 3], ids=["as it is", "in the second start"])
@pytest.mark.parametrize("where", [*HOOKS, "in the loss"])
def test_however_it_ends(where: str, at: int, error: type[BaseException]) -> None:
    """In a hook of the user's, or in the loss, by an error or by Ctrl-C."""
    model, stop = Net(), Stop(error("the user's own"), at)
    if where in HOOKS:
        HOOKS[where](model, stop)

    def stops(model: nn.Module, batch: Tensor) -> Tensor:
        value = loss(model, batch)
        if where == "in the loss":
            stop()
        return value

    before = everything(model)
    with pytest.raises(error, match="the user's own"):
        compare_starts(model, BATCH, loss=stops)
    assert_identical(before, everything(model))


MODELS: dict[str, Callable[[], Net]] = {
    "half precision": lambda: Net().bfloat16(),
    "double precision": lambda: Net().double(),
    "a lazy head": lambda: Net(head=nn.LazyLinear(2)),
    "normalised input weights": lambda: Net(weight_norm(nn.LSTM(4, 6, batch_first=True), "weight_ih_l0")),
    "half in eval": lambda: (
        Net().train().requires_grad_().apply(lambda m: m.eval() if isinstance(m, nn.Dropout) else m)
    ),
    "in eval": lambda: Net(nn.GRU(4, 6, 2, batch_first=True, dropout=0.2)).eval(),
}


@pytest.mark.parametrize("name", MODELS)
def test_whatever_the_model_is(name: str) -> None:
    """Half precision, parameters that have no shape yet or are computed from others, modes that differ."""
    model = MODELS[name]()
    before = everything(model)
    rows = compare_starts(model, BATCH, loss=loss)
    assert {"as it is", "chrono", "gate_bias"} <= set(rows.starts)
    assert_identical(before, everything(model))


def frozen_up_to_the_head() -> Net:
    net = Net().requires_grad_(False)
    net.head.requires_grad_(True)
    return net


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Net(weight_norm(nn.LSTM(4, 6, batch_first=True), "weight_hh_l0")), "holds its weights itself, whole"),
        (lambda: Net(orthogonal(nn.RNN(4, 6, batch_first=True), "weight_hh_l0")), "holds its weights itself, whole"),
        (frozen_up_to_the_head, "none that was measured in rnn'. Are its weights frozen"),
    ],
    ids=["weight_norm", "orthogonal", "frozen"],
)
def test_what_cannot_be_compared_is_said_and_left(model: Callable[[], Net], says: str) -> None:
    """Recurrent weights that are computed from others, and a module that is not trained."""
    net = model()
    before = everything(net)
    with pytest.raises(ValueError, match=says):
        compare_starts(net, BATCH, loss=loss)
    assert_identical(before, everything(net))
