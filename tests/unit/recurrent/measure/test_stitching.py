"""A fused module fed piece by piece, with anything done to its state in between, against autograd on the same model run by single cells."""

# Over 300 lines: one oracle, and everything that can be done to a state between two calls.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent import Capture, Chain, follow, measure_calls, stitch
from tests.oracles import cell_of

TIME, BATCH, WIDTH, HIDDEN = 7, 3, 4, 5
KINDS = ["RNN", "GRU", "LSTM"]


class ByCells(nn.Module):
    """Stands in for a fused module, time-major: PyTorch's own cells layer by layer, every state in the graph.

    Attributes:
        h, c: the states of all calls, ``[layer][timestep]``, of width ``(batch, hidden)``.
        ends: what left the last call: output at its last timestep, h_n, c_n.
    """

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self._module = [module]
        self.h: list[list[Tensor]] = [[] for _ in range(module.num_layers)]
        self.c: list[list[Tensor]] = [[] for _ in range(module.num_layers)]
        self.ends: list[Tensor] = []

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        (module,) = self._module
        lstm = isinstance(module, nn.LSTM)
        h0, c0 = state if lstm and state is not None else (state, None)
        outputs, h_n, c_n = list(x), [], []
        for layer in range(module.num_layers):
            with torch.random.fork_rng():  # to make a cell draws random numbers
                step = cell_of(module, layer, 0)
            if layer and module.dropout:
                outputs = list(nn.functional.dropout(torch.stack(outputs), module.dropout))
            h = x.new_zeros(x.shape[1], module.hidden_size) if h0 is None else h0[layer]
            c = x.new_zeros(x.shape[1], module.hidden_size) if c0 is None else c0[layer]
            for t, row in enumerate(outputs):
                h, c = step(row, h, c)
                self.h[layer].append(h)
                self.c[layer].append(c)
                outputs[t] = h
            h_n.append(h * 1)
            c_n.append(c * 1 if lstm else h)
        last = outputs[-1] * 1
        state = torch.stack(h_n), torch.stack(c_n)
        self.ends = [last, state[0], *([state[1]] if lstm else [])]
        return torch.stack([*outputs[:-1], last]), state if lstm else state[0]


def truth(made: ByCells, loss: Tensor) -> tuple[list[Tensor], list[Tensor], list[np.ndarray]]:
    """Total norms of h and of c, each ``(time, batch)``, and lagged curves ``(batch, lag)``, by layer."""
    lstm = len(made.ends) == 3

    def by_layer(states: list[list[Tensor]], outputs: Any, sent: Any = None) -> list[Tensor]:
        flat = [s for layer in states for s in layer]
        found = torch.autograd.grad(outputs, flat, sent, retain_graph=True, allow_unused=True)
        norms = [torch.zeros(BATCH).double() if g is None else g.norm(dim=-1) for g in found]
        return list(torch.stack(norms).unflatten(0, (len(states), -1)))

    used = torch.autograd.grad(loss, made.ends, retain_graph=True, allow_unused=True)
    sent = [(end, g) for end, g in zip(made.ends, used, strict=True) if g is not None]
    ends, gradients = zip(*sent, strict=True)
    lagged = by_layer(made.h, ends, gradients)
    if lstm:
        cells = by_layer(made.c, ends, gradients)
        lagged = [torch.hypot(h, c) for h, c in zip(lagged, cells, strict=True)]
    curves = [(norms.flip(0) / norms[-1]).T.numpy() for norms in lagged]
    return by_layer(made.h, loss), by_layer(made.c, loss) if lstm else [], curves


Forward = Callable[[nn.Module], Tensor]


def watched(module: nn.RNNBase, forward: Forward, *, announced: bool = True) -> tuple[list[Any], list[Profile]]:
    """What is joined, and the profiles, of one forward and backward."""
    capture = Capture({"rnn": module})
    capture.attach()
    capture.begin()
    loss = forward(module)
    for chain in stitch(capture.read_calls()) if announced else ():
        if isinstance(chain, Chain) and not chain.plain:
            follow(chain.calls, loss)
    loss.backward()
    joined = stitch(capture.take())
    found = measure_calls(joined, None, 1)
    capture.detach()
    return joined, found


def agrees(module: nn.RNNBase, forward: Forward) -> list[Profile]:
    """One sequence whose totals and lags are those of autograd to 1e-10, and exact."""
    torch.manual_seed(5)
    made = ByCells(module)
    totals, cells, curves = truth(made, forward(made))
    module.zero_grad()
    torch.manual_seed(5)
    (_,), found = watched(module, forward)
    for profile in found:
        expected = (totals if profile.state == "h" else cells)[profile.layer]
        assert profile.inexact_reason is None
        assert profile.timesteps == len(expected)
        assert np.allclose(profile.total, expected.T.numpy(), rtol=1e-10, atol=1e-14)
        within = np.full_like(curves[profile.layer], np.nan)
        within[:, : profile.curves.shape[1]] = profile.curves
        assert np.all(curves[profile.layer][np.isnan(within)] == 0.0)  # what lies before an episode is not counted
        assert np.allclose(np.nan_to_num(within), curves[profile.layer], rtol=1e-10, atol=1e-14)
    return found


def make(kind: str, layers: int = 2) -> nn.RNNBase:
    torch.manual_seed(0)
    return getattr(nn, kind)(WIDTH, HIDDEN, layers).double()


def inputs() -> Tensor:
    return torch.randn(TIME, BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def stepped(
    change: Callable[[Tensor, int], Tensor], pieces: int = 1, what: str = "both", loss: str = "every"
) -> Forward:
    """The module fed ``pieces`` timesteps at a time, its state changed in between.

    Args:
        what: the states of an LSTM that are changed: ``both``, ``h`` or ``c``.
        loss: on ``every`` output, the ``last`` output, the ``state`` at the end, or every ``states``.
    """

    def forward(rnn: nn.Module) -> Tensor:
        state: Any = None
        outputs, states = [], []
        for t, x in enumerate(inputs().split(pieces)):
            output, state = rnn(x, state)
            outputs.append(output)
            h, c = state if isinstance(state, tuple) else (state, None)
            states.append(h)
            h = h if what == "c" else change(h, t)
            state = h if c is None else (h, c if what == "h" else change(c, t))
        if loss == "every":
            return (torch.cat(outputs).sin() * torch.arange(1, TIME + 1)[:, None, None]).sum()
        if loss == "last":
            return outputs[-1][-1].sin().sum()
        return states[-1].sin().sum() if loss == "state" else sum((s.sin() * k).sum() for k, s in enumerate(states, 1))

    return forward


def dropped(h: Tensor, t: int) -> Tensor:
    """With a mask of its own at each timestep, whatever else has drawn random numbers."""
    torch.manual_seed(t)
    return nn.functional.dropout(h, 0.3)


norm = nn.LayerNorm(HIDDEN).double()
mix = nn.Linear(HIDDEN, HIDDEN).double()
ends = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)[:, None]
CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "times one": lambda h, t: h * 1.0,
    "a mask": lambda h, t: h * ends,
    "where": lambda h, t: torch.where(ends > 0.7, h, torch.zeros_like(h)),
    "clone": lambda h, t: h.clone(),
    "dropout": lambda h, t: dropped(h, t),
    "indexing and stacking": lambda h, t: torch.stack([h[layer] for layer in range(len(h))]),
    "concatenating": lambda h, t: torch.cat([h[..., :2], h[..., 2:]], -1),
    "a view": lambda h, t: h.flatten().view(h.shape),
    "transposing twice": lambda h, t: h.transpose(0, 1).contiguous().transpose(0, 1).contiguous(),
    "a norm": lambda h, t: norm(h),
    "a division by the norm": lambda h, t: h / (1 + h.norm(dim=-1, keepdim=True)),
    "a residual": lambda h, t: h + 0.5 * torch.tanh(mix(h)),
    "every other step": lambda h, t: h * 0.9 if t % 2 else h,
    "nothing": lambda h, t: h,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_done_to_the_state(kind: str, change: str) -> None:
    """A state that is changed between two steps still continues its sequence, in every layer."""
    agrees(make(kind), stepped(CHANGES[change]))


@pytest.mark.parametrize("what", ["h", "c"])
@pytest.mark.parametrize("change", ["a mask", "a norm", "clone"])
def test_one_of_two_states_changed(what: str, change: str) -> None:
    """An LSTM of which h alone, or c alone, is changed between two steps is one sequence, of h and of c."""
    found = agrees(make("LSTM"), stepped(CHANGES[change], what=what))
    assert {profile.state for profile in found} == {"h", "c"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["last", "state", "states"])
@pytest.mark.parametrize("change", ["a mask", "nothing"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_wherever_the_loss_is(kind: str, loss: str, change: str, pieces: int) -> None:
    """On the last output, the last state or every state; fed a timestep or a chunk, the last of them shorter, at a time."""
    agrees(make(kind), stepped(CHANGES[change], pieces, loss=loss))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    layers=st.integers(1, 3),
    change=st.sampled_from([name for name in CHANGES if name != "nothing"]),
    pieces=st.integers(1, 4),
    what=st.sampled_from(["both", "h", "c"]),
    loss=st.sampled_from(["every", "last", "state", "states"]),
)
def test_any_of_these_together(kind: str, layers: int, change: str, pieces: int, what: str, loss: str) -> None:
    """Kinds, layers, changes, pieces and losses in any combination agree with autograd."""
    agrees(make(kind, layers), stepped(CHANGES[change], pieces, "both" if kind != "LSTM" else what, loss))


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_that_end(kind: str) -> None:
    """A mask of 0 where an episode ends leaves one sequence, whose gradient ends there for that episode alone."""
    masks = torch.ones(TIME, BATCH, 1, dtype=torch.float64)
    masks[2, 0] = masks[4, 1] = 0.0
    (h, *_) = agrees(make(kind, 1), stepped(lambda h, t: h * masks[t], loss="last"))
    assert [int((row > 0).argmax()) for row in h.total] == [3, 5, 0]
    assert [int(np.isfinite(row).sum()) for row in h.curves] == [TIME - 3, TIME - 5, TIME]


@pytest.mark.parametrize("kind", KINDS)
def test_its_output_fed_back_as_input(kind: str) -> None:
    """Where an input hangs on an earlier output too, the lags count both ways back, also if the state goes on untouched."""

    def forward(rnn: nn.Module) -> Tensor:
        x, state, outputs = inputs()[:1], None, []
        for _ in range(TIME):
            output, state = rnn(x, state)
            outputs.append(output)
            x = output[..., :WIDTH] * 2
        return torch.cat(outputs).sin().sum()

    agrees(make(kind), forward)


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_the_state_taken_from_the_output(kind: str) -> None:
    """An output that becomes the next initial state continues the sequence as h_n does."""

    def forward(rnn: nn.Module) -> Tensor:
        state, outputs = None, []
        for x in inputs().split(2):
            output, _ = rnn(x, state)
            state = output[-1][None]
            outputs.append(output)
        return torch.cat(outputs).sin().sum()

    agrees(make(kind, 1), forward)


def test_a_state_changed_in_place() -> None:
    """A state that is masked in place between two steps is no longer the one that came out."""

    def forward(rnn: nn.Module) -> Tensor:
        state, total = None, 0
        for x in inputs().split(1):
            output, state = rnn(x, state)
            total = total + output.sin().sum()
            state = state * 1 if isinstance(rnn, ByCells) else state
            state.mul_(ends)
        return total

    agrees(make("GRU", 1), forward)


def test_one_branch_of_two() -> None:
    """Of two continuations of one state the first goes on with the sequence; the second is one of its own."""

    def forward(rnn: nn.Module) -> Tensor:
        _, state = rnn(inputs()[:3])
        return sum(rnn(inputs()[3:], state * 0.5)[0].sin().sum() for _ in range(2))

    joined, found = watched(make("GRU", 1), forward)
    assert [isinstance(one, Chain) for one in joined] == [True, False]
    assert [profile.timesteps for profile in found] == [TIME, TIME - 3]
    assert [profile.call for profile in found] == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["batch first", "no batch", "no batch, batch first"])
def test_every_layout(kind: str, layout: str) -> None:
    """Batch first, or without a batch: the same numbers as time-major, of one sequence where there is no batch."""
    plain, other = make(kind), make(kind)
    other.batch_first = "first" in layout
    alone = "no batch" in layout

    def forward(rnn: nn.Module) -> Tensor:
        state: Any = None
        outputs = []
        x = inputs()[:, :1] if alone else inputs()
        for piece in x.split(2):
            if rnn is plain:
                output, state = rnn(piece, state)
            elif alone:
                output, state = rnn(piece[:, 0], state)
                output = output[:, None]
            else:
                output, state = rnn(piece.transpose(0, 1), state)
                output = output.transpose(0, 1)
            outputs.append(output)
            state = tuple(s * 0.9 for s in state) if isinstance(state, tuple) else state * 0.9
        return torch.cat(outputs).sin().sum()

    for a, b in zip(watched(other, forward)[1], watched(plain, forward)[1], strict=True):
        assert a.exact
        assert np.allclose(a.total, b.total, rtol=1e-10)
        assert np.allclose(a.curves, b.curves, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["nothing", "a mask"])
def test_dropout_between_layers(kind: str, change: str) -> None:
    """The masks that were drawn between the layers, in each call anew, are drawn again in measuring."""
    module = make(kind)
    module.dropout = 0.4
    agrees(module, stepped(CHANGES[change], 2))


@pytest.mark.parametrize("timesteps", [1, 3])
def test_what_cannot_be_joined_says_so(timesteps: int) -> None:
    """Calls of a bidirectional module whose state goes on are measured each by itself: exactly where one has several timesteps;
    one of a single timestep says nothing of the way back, and gives the reason.
    """
    module = nn.GRU(WIDTH, HIDDEN, bidirectional=True).double()
    _, found = watched(module, stepped(lambda h, t: h * 0.5, timesteps))
    assert all(profile.unjoined for profile in found)
    for profile in found:
        assert ("bidirectional" in (profile.inexact_reason or "")) is (profile.timesteps == 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", ["a new order", "a norm over the batch", "a mean"])
def test_rows_that_are_mixed(kind: str, mix: str) -> None:
    """Where a row of the state comes from other sequences the totals are right, and the figures say that a row is not one sequence."""
    mixes: dict[str, Callable[[Tensor, int], Tensor]] = {
        "a new order": lambda h, t: h[:, [1, 2, 0]],
        "a norm over the batch": lambda h, t: (h - h.mean(1, keepdim=True)) / (1e-3 + h.std(1, keepdim=True)),
        "a mean": lambda h, t: h + h.mean(1, keepdim=True),
    }
    made = ByCells(make(kind, 1))
    totals, _, _ = truth(made, stepped(mixes[mix])(made))
    _, (profile, *_) = watched(make(kind, 1), stepped(mixes[mix]))
    assert "comes from other rows" in (profile.inexact_reason or "")
    assert np.allclose(profile.total, totals[0].T.numpy(), rtol=1e-10)


def test_without_a_word_before_the_backward_pass() -> None:
    """Totals are exact all the same where the lags were not followed."""
    forward = stepped(CHANGES["a mask"])
    module = make("GRU")
    _, found = watched(module, forward, announced=False)
    module.zero_grad()
    _, expected = watched(module, forward)
    assert [np.array_equal(a.total, b.total) for a, b in zip(found, expected, strict=True)] == [True, True]
    assert all(not len(profile.curves) for profile in found)


def test_gradients_are_left_as_they_are() -> None:
    """Following the lags changes no parameter's gradient by a bit."""
    bare, followed = make("LSTM"), make("LSTM")
    stepped(CHANGES["a norm"])(bare).backward()
    watched(followed, stepped(CHANGES["a norm"]))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(bare.parameters(), followed.parameters(), strict=True))
