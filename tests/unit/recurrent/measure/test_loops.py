"""Recurrences that a model runs by itself, against autograd on the same graph."""

# Over 300 lines: one oracle, and every form of a loop.
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch import tap
from lightning_gradwatch.profile import gradient_horizon
from lightning_gradwatch.recurrent import (
    Capture,
    Loop,
    loop_profiles,
    measure_calls,
    measure_lags,
    profiles,
    stitch,
    sweep,
)
from lightning_gradwatch.recurrent.capture.severed import severed

TIME, BATCH, WIDTH, HIDDEN = 7, 3, 4, 5


def run(module: nn.Module, forward, modules: dict[str, nn.Module] | None = None):
    """One forward and backward, with what was captured. ``forward`` returns the loss and the hidden states in order."""
    capture = Capture({"cell": module} if modules is None else modules)
    capture.attach()
    capture.begin()
    loss, states = forward()
    # The oracle: every state's total gradient and the last one's by lag, asked of autograd before anything else.
    totals = torch.autograd.grad(loss, states, retain_graph=True)
    sent = totals[-1]
    lags = torch.autograd.grad((states[-1] * sent).sum(), states, retain_graph=True, allow_unused=True)
    for call in capture.read_calls():
        call.release()
    for call in capture.read_calls():
        if isinstance(call, Loop):
            measure_lags(call, loss)
    cut = severed(capture.read_calls())
    loss.backward()
    calls = capture.take()
    expected = [g.detach().double().norm(dim=-1) for g in totals]
    by_lag = [torch.zeros(BATCH).double() if g is None else g.double().norm(dim=-1) for g in reversed(lags)]
    result = calls, torch.stack(expected), torch.stack(by_lag), cut
    capture.detach()
    return result


def inputs() -> torch.Tensor:
    return torch.randn(TIME, BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loop_over(cell: nn.Module, *, between=lambda h: h, unused: int = 0):
    """The cell in a loop, with a loss on every state; states kept in a list."""

    def forward():
        h, states = None, []
        for x in inputs():
            out = cell(x, h)
            h = between(out)
            states.append(out[0] if isinstance(out, tuple) else out)
        return sum((s * s * (t + 1)).sum() for t, s in enumerate(states)), states

    return forward


CELLS = {"RNN": nn.RNNCell, "GRU": nn.GRUCell, "LSTM": nn.LSTMCell}


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_in_a_loop(kind: str) -> None:
    """A cell called in a Python loop is one sequence, with total and lagged gradients of h as autograd has them."""
    torch.manual_seed(0)
    (loop,), totals, lags, cut = run(cell := CELLS[kind](WIDTH, HIDDEN).double(), loop_over(cell))
    found = loop_profiles(loop, None)
    assert [p.state for p in found] == (["h", "c"] if kind == "LSTM" else ["h"])
    assert found[0].kind == kind
    assert np.allclose(found[0].total, totals.T.numpy(), rtol=1e-12)
    assert found[0].exact
    assert not cut
    if kind != "LSTM":  # an LSTM's state is h and c together
        assert np.allclose(found[0].curves, (lags / lags[0]).T.numpy(), rtol=1e-12)


def test_an_lstm_cell_agrees_with_the_fused_module() -> None:
    """A loop over nn.LSTMCell has the same total and lagged gradients as nn.LSTM with its weights and the loss on the last step."""
    torch.manual_seed(0)
    cell, fused = nn.LSTMCell(WIDTH, HIDDEN).double(), nn.LSTM(WIDTH, HIDDEN).double()
    fused.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})

    def forward():
        state, states = None, []
        for x in inputs():
            state = cell(x, state)
            states.append(state[0])
        return (states[-1] ** 2).sum(), states

    (loop,), *_ = run(cell, forward)
    capture = Capture({"rnn": fused})
    capture.attach()
    capture.begin()
    output, _ = fused(inputs())
    (output[-1] ** 2).sum().backward()
    (call,) = capture.take()
    expected = profiles(call, sweep(call))
    capture.detach()
    for p, q in zip(loop_profiles(loop, None), expected, strict=True):
        assert p.state == q.state
        assert np.allclose(p.total, q.total, rtol=1e-10)
        assert np.allclose(p.curves, q.curves, rtol=1e-10)


@pytest.mark.parametrize(
    "between",
    [lambda h: h * 0.5, lambda h: nn.functional.layer_norm(h, (HIDDEN,)), lambda h: nn.functional.dropout(h, 0.25)],
    ids=["scaled", "normalised", "dropped"],
)
def test_a_state_changed_between_two_steps(between) -> None:
    """A state that is scaled, normalised or dropped in part before it goes in again still continues its sequence."""
    torch.manual_seed(0)
    cell = nn.GRUCell(WIDTH, HIDDEN).double()
    (loop,), totals, lags, _ = run(cell, loop_over(cell, between=between))
    (found,) = loop_profiles(loop, None)
    assert np.allclose(found.total, totals.T.numpy(), rtol=1e-12)
    assert np.allclose(found.curves, (lags / lags[0]).T.numpy(), rtol=1e-12)


def test_an_output_changed_in_place_afterwards() -> None:
    """The gradient is that of the state as the cell made it, though the tensor was changed in place later."""
    torch.manual_seed(0)
    cell = nn.RNNCell(WIDTH, HIDDEN, nonlinearity="relu").double()
    capture = Capture({"cell": cell})
    capture.attach()
    capture.begin()
    h, total = torch.zeros(BATCH, HIDDEN, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for x in inputs():
        h = cell(x, h) + 0  # relu's own result is needed for its backward pass
        total = total + (h.mul_(0.5) ** 2).sum()
    (loop,) = capture.read_calls()
    measure_lags(loop, total)
    total.backward()
    (found,) = loop_profiles(loop, None)
    capture.detach()
    assert np.allclose(found.total, _by_hand(cell), rtol=1e-10)


def _by_hand(cell: nn.Module) -> np.ndarray:
    """The same without in-place changes: ∂L/∂(what the cell made)."""
    h, made, total = torch.zeros(BATCH, HIDDEN, dtype=torch.float64), [], 0
    for x in inputs():
        made.append(cell(x, h))
        h = made[-1] * 0.5
        total = total + (h * h).sum()
    return torch.stack([g.norm(dim=-1) for g in torch.autograd.grad(total, made)]).T.numpy()


def test_two_cells_in_nested_loops_are_told_apart() -> None:
    """Two cells, one called in an inner loop, give a sequence each, and the inner one another in each round."""
    torch.manual_seed(0)
    outer, inner = nn.GRUCell(HIDDEN, HIDDEN).double(), nn.GRUCell(WIDTH, HIDDEN).double()

    def forward():
        slow, states = torch.zeros(BATCH, HIDDEN, dtype=torch.float64), []
        for _ in range(3):
            h = torch.zeros(BATCH, HIDDEN, dtype=torch.float64)
            for x in inputs()[:4]:
                h = inner(x, h)
            slow = outer(h, slow)
            states.append(slow)
        return (states[-1] ** 2).sum(), states

    calls, totals, _, cut = run(outer, forward, {"outer": outer, "inner": inner})
    assert [(c.module, c.index, len(c.h)) for c in calls] == [
        ("inner", 0, 4),
        ("outer", 0, 3),
        ("inner", 1, 4),
        ("inner", 2, 4),
    ]
    assert np.allclose(loop_profiles(calls[1], None)[0].total, totals.T.numpy(), rtol=1e-12)
    assert not cut


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_fused_module_fed_piece_by_piece(kind: str, chunk: int) -> None:
    """A fused module fed one timestep, or a chunk, at a time is measured as one call over all of them would be."""
    torch.manual_seed(0)
    module = getattr(nn, kind)(WIDTH, HIDDEN, 2).double()

    def measure(pieces: int):
        module.zero_grad()
        capture = Capture({"rnn": module})
        capture.attach()
        capture.begin()
        state, outputs = None, []
        for x in inputs().split(pieces):
            output, state = module(x, state)
            outputs.append(output)
        (torch.cat(outputs) ** 2 * torch.arange(1, TIME + 1)[:, None, None]).sum().backward()
        found = measure_calls(stitch(capture.take()), None, 4)
        capture.detach()
        return found

    for p, q in zip(measure(chunk), measure(TIME), strict=True):
        assert (p.timesteps, p.exact, p.call) == (TIME, True, 0)
        assert np.allclose(p.total, q.total, rtol=1e-10)
        assert np.allclose(p.direct, q.direct, rtol=1e-10)
        assert np.allclose(p.curves, q.curves, rtol=1e-10, equal_nan=True)


@pytest.mark.parametrize("sever", [lambda h: None, lambda h: h.detach()], ids=["reset", "detached"])
def test_a_state_severed_at_every_step_is_noticed(sever) -> None:
    """A state that is reset or detached at every step leaves no gradient through time, and is reported as such."""
    cell = nn.GRUCell(WIDTH, HIDDEN).double()
    calls, _, _, cut = run(cell, loop_over(cell, between=sever))
    assert list(cut) == ["cell"]
    assert len(calls) == TIME


def test_truncation_is_not_severance() -> None:
    """A state detached every other step leaves sequences of two, which is truncated backpropagation and no fault."""
    cell = nn.GRUCell(WIDTH, HIDDEN).double()
    count = iter(range(100))
    calls, _, _, cut = run(cell, loop_over(cell, between=lambda h: h.detach() if next(count) % 2 else h))
    assert [len(call.h) for call in calls] == [2, 2, 2, 1]
    assert not cut


def test_tap_marks_anybody_s_recurrence() -> None:
    """Tapped states are one sequence, with the gradients that autograd gives; the horizon of a known decay is right."""
    weight = (0.9 * torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]).requires_grad_()

    def forward():
        h, states = torch.randn(BATCH, 6, dtype=torch.float64, requires_grad=True), []
        for _ in range(60):
            h = tap(h @ weight, "mine")
            states.append(h)
        return (states[-1] ** 2).sum(), states

    (loop,), totals, _, _ = run(nn.Identity(), forward, {})
    (found,) = loop_profiles(loop, None)
    assert (found.module, found.kind) == ("mine", "tap")
    assert np.allclose(found.total, totals.T.numpy(), rtol=1e-10)
    assert gradient_horizon(found.lagged()).lag == 44


def test_tap_returns_what_it_was_given() -> None:
    """Without anyone listening, tap is the identity; what is no tensor is refused."""
    h = torch.ones(2)
    assert tap(h) is h
    with pytest.raises(TypeError, match="`h` must be a tensor; found tuple"):
        tap((h, h))


def test_measuring_lags_leaves_no_gradient_behind() -> None:
    """Following the loss back before the backward pass adds to no parameter's gradient and to no state's."""
    cell = nn.GRUCell(WIDTH, HIDDEN).double()
    capture = Capture({"cell": cell})
    capture.attach()
    capture.begin()
    loss, _ = loop_over(cell)()
    (loop,) = capture.read_calls()
    measure_lags(loop, loss)
    assert all(parameter.grad is None for parameter in cell.parameters())
    assert not loop.has_gradient()
    loss.backward()
    with_lags = [parameter.grad.clone() for parameter in cell.parameters()]
    capture.detach()
    cell.zero_grad()
    loop_over(cell)()[0].backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(with_lags, cell.parameters(), strict=True))
    assert math.isfinite(float(loss))


def shrinking(cell: nn.Module, sizes: list[int], choose=lambda h, n: h[:n]):
    """The cell over a batch that changes in size, with a loss on every state; loss, and the states as autograd knows them."""
    state, states = torch.randn(sizes[0], HIDDEN, dtype=torch.float64), []
    loss = torch.zeros((), dtype=torch.float64)
    for t, n in enumerate(sizes):
        grown = torch.cat([state, state.new_zeros(max(n - len(state), 0), HIDDEN)])
        state = cell(torch.randn(n, WIDTH, dtype=torch.float64), choose(grown, n))
        states.append(state)
        loss = loss + (state.sin() * (t + 1)).sum()
    return loss, states


def measure_shrinking(sizes: list[int], module: nn.Module | None = None, **options):
    cell = module or nn.GRUCell(WIDTH, HIDDEN).double()
    capture = Capture({"cell": cell} if module is None else {})
    capture.attach()
    capture.begin()
    loss, states = shrinking(cell, sizes, **options)
    totals = [g.norm(dim=-1) for g in torch.autograd.grad(loss, states, retain_graph=True)]
    (sent,) = torch.autograd.grad(loss, states[-1:], retain_graph=True)
    lags = [g.norm(dim=-1) for g in torch.autograd.grad((states[-1] * sent).sum(), states, retain_graph=True)]
    capture.forget_gradients()
    (loop,) = capture.read_calls()
    measure_lags(loop, loss)
    loss.backward()
    (found,) = loop_profiles(loop, None)
    capture.detach()
    return found, totals, lags


def test_a_batch_that_shrinks() -> None:
    """Sequences that end early are measured up to their own end; the last step's loss is followed back for those that it has."""
    sizes = [4, 4, 3, 3, 2, 2]
    found, totals, lags = measure_shrinking(sizes)
    assert (found.batch_size, found.sequences, found.lengths) == (4, (0, 1, 2, 3), (6, 6, 4, 2))
    assert found.exact
    for j, row in enumerate(found.total):
        assert np.allclose(row, [float(total[j]) if j < len(total) else np.nan for total in totals], equal_nan=True)
    expected = torch.stack([lag[:2] for lag in reversed(lags)])
    assert np.allclose(found.curves, (expected / expected[0]).T.numpy(), rtol=1e-12)
    assert np.isfinite(found.total_median()).all()


def test_a_batch_that_grows() -> None:
    """The sequences that are there from the first step on are measured."""
    found, totals, _ = measure_shrinking([2, 2, 3, 4])
    assert (found.batch_size, found.sequences, found.lengths) == (4, (0, 1), (4, 4))
    assert found.exact
    assert np.allclose(found.total, torch.stack([total[:2] for total in totals]).T.numpy())
    assert len(found.curves) == 2


def test_a_batch_that_shrinks_to_rows_of_its_own_choice() -> None:
    """Where the rows that stay are not the first ones, the figures say that they are not exact."""
    found, _, _ = measure_shrinking([4, 3, 2], choose=lambda h, n: h[-n:])
    assert found.inexact_reason is not None
    assert "changes in size" in found.inexact_reason


def test_a_tap_in_a_batch_that_shrinks() -> None:
    """What goes into a tap's next step is not known, so its figures are given as not exact."""

    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(WIDTH, HIDDEN).double()

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return tap(self.cell(x, h), "mine")

    found, totals, _ = measure_shrinking([4, 3, 2], Tapped())
    assert np.allclose(found.total[0], [float(total[0]) for total in totals])
    assert found.inexact_reason is not None


def test_a_cell_that_begins_by_itself() -> None:
    """A cell of one's own called without an argument begins a sequence, which its next call continues."""

    class Begins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.begin, self.mix = nn.Parameter(torch.ones(BATCH, HIDDEN)), nn.Linear(HIDDEN, HIDDEN)

        def forward(self, h: torch.Tensor | None = None) -> torch.Tensor:
            return torch.tanh(self.mix(self.begin if h is None else h))

    cell = Begins()

    def forward():
        states = [cell()]
        for _ in range(TIME - 1):
            states.append(cell(states[-1]))
        return (states[-1] ** 2).sum(), states

    (loop,), totals, lags, cut = run(cell, forward)
    (found,) = loop_profiles(loop, None)
    assert not cut
    assert np.allclose(found.total, totals.T.numpy(), rtol=1e-5)
    assert np.allclose(found.curves, (lags / lags[0]).T.numpy(), rtol=1e-5)
