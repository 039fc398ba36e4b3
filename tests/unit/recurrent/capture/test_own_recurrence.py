"""A subclass of a fused module that computes the recurrence by itself is measured where it is PyTorch's, and told where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_gradwatch import Profile
from lightning_gradwatch.recurrent import Capture, measure_calls
from lightning_gradwatch.recurrent.capture.own_recurrence import MADE_OF_ONE_ANOTHER, OWN_RECURRENCE

BATCH, TIME, WIDTH, HIDDEN = 3, 6, 4, 5


def by_hand(step: Any, module: nn.RNNBase, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
    """All layers over all timesteps, batch first; ``step`` makes the next states of one layer from its weights."""
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        states = tuple(part[layer] for part in hx)
        made: list[Tensor] = []
        for x_t in x.unbind(1):
            states = step(x_t, states, module.all_weights[layer])
            made.append(states[0])
        x = torch.stack(made, 1)
        finals.append(states)
    last = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    return x, last if len(last) > 1 else last[0]


def lstm_step(x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor], forget: float = 0.0) -> tuple[Tensor, ...]:
    h, c = states
    i, f, g, o = (x @ weights[0].T + weights[2] + h @ weights[1].T + weights[3]).chunk(4, 1)
    c = (f + forget).sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
    (h,) = states
    r_x, z_x, n_x = (x @ weights[0].T + weights[2]).chunk(3, 1)
    r_h, z_h, n_h = (h @ weights[1].T + weights[3]).chunk(3, 1)
    z = (z_x + z_h).sigmoid()
    return ((1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * h,)


class HandLSTM(nn.LSTM):
    forget = 0.0

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        hx = hx or [input.new_zeros(self.num_layers, len(input), self.hidden_size)] * 2
        return by_hand(lambda *given: lstm_step(*given, forget=self.forget), self, input, hx)


class OtherLSTM(HandLSTM):
    """Adds one to the forget gate, as no LSTM of PyTorch's does."""

    forget = 1.0


class HandGRU(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        hx = input.new_zeros(self.num_layers, len(input), self.hidden_size) if hx is None else hx
        return by_hand(gru_step, self, input, [hx])


class MaskedGRU(nn.GRU):
    """A state stays as it is where the mask says that there is nothing more, as in torchrl's classes."""

    def forward(self, input: Tensor, hx: Any = None, mask: Any = None) -> tuple[Tensor, Any]:
        steps = iter(range(input.shape[1] * self.num_layers))

        def step(x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
            t = next(steps) % input.shape[1]
            return (torch.where(mask[:, t, None], gru_step(x, states, weights)[0], states[0]),)

        return by_hand(step, self, input, [input.new_zeros(self.num_layers, len(input), self.hidden_size)])


class OnlyLast(HandLSTM):
    """Returns no more than the last output."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input, hx)[0][:, -1]


def watched(
    module: nn.RNNBase, x: Any, loss: Callable[[Any], Tensor] | None = None, **options: Any
) -> tuple[list[Profile], Capture]:
    capture = Capture({"rnn": module})
    capture.attach()
    try:
        capture.begin()
        made = module(x, **options)
        if loss is not None:
            loss(made).backward()
        else:
            (made[0] if isinstance(made, tuple) else made).pow(3).sum().backward()
        return measure_calls(capture.take(), None, 4), capture
    finally:
        capture.detach()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("own", "kind"), [(HandLSTM, nn.LSTM), (HandGRU, nn.GRU)])
def test_the_same_recurrence_is_measured_as_the_operator_is(own: Any, kind: Any, layers: int) -> None:
    """To 1e-10 in float64, in every layer and state, and exact."""
    theirs = kind(WIDTH, HIDDEN, layers, batch_first=True).double()
    module = own(WIDTH, HIDDEN, layers, batch_first=True).double()
    module.load_state_dict(theirs.state_dict())
    x = torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64)
    found, wanted = (watched(one, x)[0] for one in (module, theirs))
    assert len(found) == len(wanted) > 0
    for ours, reference in zip(found, wanted, strict=True):
        assert ours.exact, ours.inexact_reason
        torch.testing.assert_close(torch.tensor(ours.total), torch.tensor(reference.total), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(
            torch.from_numpy(ours.lagged()), torch.from_numpy(reference.lagged()), rtol=1e-10, atol=1e-14
        )


@pytest.mark.parametrize("lengths", [[TIME, 2, 4], [1, TIME - 1, 1], [3, 3, 3]])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_masked_recurrence_is_measured_as_packed_sequences_are(layers: int, lengths: list[int]) -> None:
    """Each sequence as far as it goes, to 1e-10 in float64."""
    theirs = nn.GRU(WIDTH, HIDDEN, layers, batch_first=True).double()
    module = MaskedGRU(WIDTH, HIDDEN, layers, batch_first=True).double()
    module.load_state_dict(theirs.state_dict())
    x = torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64)
    mask = torch.arange(TIME) < torch.tensor(lengths)[:, None]
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    found = watched(module, x, mask=mask, loss=lambda made: made[0][mask].pow(3).sum())[0]
    wanted = watched(theirs, packed, loss=lambda made: made[0].data.pow(3).sum())[0]
    assert len(found) == len(wanted) == layers
    for ours, reference in zip(found, wanted, strict=True):
        assert ours.exact, ours.inexact_reason
        assert ours.lengths == reference.lengths == tuple(lengths)
        steps = max(lengths)
        torch.testing.assert_close(
            torch.tensor(ours.total)[:, :steps], torch.tensor(reference.total), rtol=1e-10, atol=1e-14, equal_nan=True
        )
        torch.testing.assert_close(
            torch.from_numpy(ours.lagged())[:steps], torch.from_numpy(reference.lagged()), rtol=1e-10, atol=1e-14
        )


def test_a_mask_with_gaps_is_told() -> None:
    """A state that waits and goes on is no sequence that ends."""
    mask = torch.ones(BATCH, TIME, dtype=torch.bool)
    mask[1, 2] = False
    x = torch.randn(BATCH, TIME, WIDTH)
    profiles, capture = watched(MaskedGRU(WIDTH, HIDDEN, batch_first=True), x, mask=mask)
    assert not profiles
    assert capture.unseen == {"rnn": OWN_RECURRENCE}


class LastIsView(HandGRU):
    """Its final state is a view of the last one, of which the output has a copy."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        h, made = input.new_zeros(len(input), self.hidden_size), []
        for x in input.unbind(1):
            (h,) = gru_step(x, (h,), self.all_weights[0])
            made.append(h)
        return torch.stack(made, 1), h[None]


class LastIsPart(HandGRU):
    """Its final state is the very tensor that the output was made of."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        h, made = input.new_zeros(1, len(input), self.hidden_size), []
        for x in input.unbind(1):
            h = torch.stack(gru_step(x, (h[0],), self.all_weights[0]))
            made.append(h)
        return torch.cat(made).transpose(0, 1), h


class LastIsRead(HandGRU):
    """Its final state is read off its output."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        output, _ = super().forward(input)
        return output, output[:, -1][None]


LOSSES: dict[str, Callable[[Any], Tensor]] = {
    "output": lambda made: made[0].pow(3).sum(),
    "final state": lambda made: made[1].pow(2).sum(),
    "both": lambda made: made[0].pow(3).sum() + made[1].pow(2).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("own", [HandGRU, LastIsView, LastIsPart, LastIsRead])
def test_what_comes_by_the_output_and_by_the_final_state_is_not_counted_twice(own: Any, loss: str) -> None:
    """As of PyTorch's own to 1e-10; or it is not exact, and says why."""
    theirs, module = (kind(WIDTH, HIDDEN, batch_first=True).double() for kind in (nn.GRU, own))
    module.load_state_dict(theirs.state_dict())
    x = torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64)
    (ours,), (reference,) = (watched(one, x, LOSSES[loss])[0] for one in (module, theirs))
    if own in (LastIsPart, LastIsRead):
        assert ours.inexact_reason == MADE_OF_ONE_ANOTHER
        return
    assert ours.exact, ours.inexact_reason
    torch.testing.assert_close(torch.tensor(ours.total), torch.tensor(reference.total), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("other", [OtherLSTM, OnlyLast])
def test_another_recurrence_is_told(other: Any) -> None:
    """It is not replayed as if it were PyTorch's."""
    profiles, capture = watched(other(WIDTH, HIDDEN, batch_first=True), torch.randn(BATCH, TIME, WIDTH))
    assert not profiles
    assert capture.unseen == {"rnn": OWN_RECURRENCE}


def test_a_first_batch_that_is_not_finite_decides_nothing() -> None:
    """What the recurrence is shows the first output that is."""
    module = HandLSTM(WIDTH, HIDDEN, batch_first=True)
    capture = Capture({"rnn": module})
    capture.attach()
    try:
        capture.begin()
        module(torch.full((BATCH, TIME, WIDTH), torch.nan))
        assert not capture.read_calls()
        module(torch.randn(BATCH, TIME, WIDTH))
        assert len(capture.read_calls()) == 1
    finally:
        capture.detach()


def test_no_random_number_is_drawn() -> None:
    """Where masks between the layers would be, it is not tried."""
    state = torch.get_rng_state()
    module, x = HandLSTM(WIDTH, HIDDEN, 2, batch_first=True, dropout=0.5), torch.randn(BATCH, TIME, WIDTH)
    torch.set_rng_state(state)
    profiles, capture = watched(module, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not profiles
    assert capture.unseen == {"rnn": OWN_RECURRENCE}
