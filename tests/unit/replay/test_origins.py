"""Numbers that are not finite are followed to the operation that made them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.replay.origins import Origin, Origins


def origin_of_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Origin | None:
    """The origin of what is not finite in d loss / d x."""
    x = x.requires_grad_()
    with torch.autograd.set_detect_anomaly(True, check_nan=False), Origins() as origins:
        loss(x).backward()
    return origins.of(x.grad)


def origin_of(make: Callable[[], Tensor]) -> Origin | None:
    with Origins() as origins:
        return origins.of(make())


def test_the_first_operation_is_named_not_those_after_it():
    """With its line, its inputs' range and the value that it made."""
    x = torch.tensor([2.0, 0.0, 1.0])
    origin = origin_of(lambda: (torch.log(x) * 2 + 1).pow(3).sum())
    assert origin is not None
    assert (origin.operation, origin.phase, origin.value) == ("aten.log.default", "forward", -math.inf)
    assert origin.inputs == ("3, float32, from 0 to 2",)
    assert origin.line is not None
    assert "test_origins.py" in origin.line
    assert "torch.log(x) * 2" in origin.line


def test_in_the_backward_pass():
    """The operation, autograd's name for it, and the line of its forward."""
    origin = origin_of_gradient(lambda x: torch.sqrt(x * 2).sum(), torch.zeros(3))
    assert origin is not None
    assert (origin.phase, origin.node, origin.value) == ("backward", "SqrtBackward0", math.inf)
    assert "torch.sqrt(x * 2)" in (origin.line or "")


def test_an_overflow_in_the_backward_pass_through_time():
    """The recurrence's own matrix product is named, whose forward line is the call of the layer."""
    torch.manual_seed(0)
    rnn = nn.RNN(1, 4, nonlinearity="relu")
    for weight in rnn.parameters():
        nn.init.constant_(weight, 0.0)
    with torch.no_grad():
        rnn.weight_hh_l0 += 1e6
        rnn.bias_ih_l0 += 1e-30
    x = torch.zeros(8, 1, 1)
    with torch.autograd.set_detect_anomaly(True, check_nan=False), Origins() as origins:
        output, _ = rnn(x)
        (output[-1] * 1e-30).sum().mul(1e30).backward()
    origin = origins.of(rnn.weight_hh_l0.grad)
    assert origin is not None
    assert origin.phase == "backward"
    assert origin.operation in ("aten.mm.default", "aten.mul.Tensor", "aten.addmm.default")
    assert "rnn(x)" in (origin.line or "")


def test_a_mask_that_softmax_takes_away_is_no_origin():
    """Minus infinities that end in finite numbers lead nowhere."""
    scores, mask = torch.zeros(2, 3), torch.tensor([[False, True, False]])

    def make() -> Tensor:
        weights = scores.masked_fill(mask, -math.inf).softmax(-1)
        return (weights - 1).sqrt()

    origin = origin_of(make)
    assert origin is not None
    assert origin.operation == "aten.sqrt.default"
    assert origin_of(lambda: scores.masked_fill(mask, -math.inf).softmax(-1)) is None


def test_what_was_given_is_named_with_its_entry():
    """A number that was there before any operation is no operation's."""
    x = torch.ones(2, 3)
    x[1, 2] = math.nan
    origins = Origins()
    origins.give("batch[0]", x)
    with origins:
        y = (x[1:] * 2).sum()
    origin = origins.of(y)
    assert origin is not None
    assert (origin.phase, origin.told()) == ("given", "batch[0][1, 2] is nan")


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.__setitem__((0, 1), math.nan),
        lambda x: x[0].fill_(math.inf),
        lambda x: x.view(-1)[2:3].log_().neg_(),
        lambda x: x.masked_fill_(x > 0, math.nan),
    ],
)
def test_what_is_written_in_place_is_followed(write):
    """A view that is written to spoils the whole that it is part of."""

    def make() -> Tensor:
        x = torch.ones(2, 2)
        x[1, 0] = 0.0
        write(x)
        return x * 1.0

    origin = origin_of(make)
    assert origin is not None
    assert "test_origins.py" in (origin.line or "")
    assert origin.operation != "aten.mul.Tensor"


def test_memory_that_was_never_written_is_no_origin():
    """What torch.empty returns says nothing, also where it happens to hold NaN."""

    def make() -> Tensor:
        x = torch.empty(1000)
        torch.full((1000,), math.nan)  # so that some memory does
        x = torch.empty(1000)
        x.fill_(2.0)
        return (x - 2).log()

    origin = origin_of(make)
    assert origin is not None
    assert origin.operation == "aten.log.default"


def test_all_finite():
    """There is no origin of nothing; integers and empty tensors have none."""
    assert origin_of(lambda: torch.arange(3).float().exp()) is None
    assert origin_of(lambda: torch.arange(3)) is None
    assert origin_of(lambda: torch.empty(0)) is None
