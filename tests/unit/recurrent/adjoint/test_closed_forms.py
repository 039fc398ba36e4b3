"""The backward recurrence of each kind, by itself, against autograd through PyTorch's own cell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch.recurrent.adjoint import Ends, make_adjoint
from lightning_gradwatch.recurrent.shape import Shape

T, B, INPUT, HIDDEN = 5, 3, 2, 4


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
def test_total_gradients_and_those_of_the_input(mode: str) -> None:
    """∂L/∂h_t of every timestep, and ∂L/∂x_t by way of δ, to 1e-12 in float64."""
    options = {"nonlinearity": mode.removeprefix("RNN_").lower()} if mode.startswith("RNN") else {}
    module = getattr(nn, mode.partition("_")[0])(INPUT, HIDDEN, **options).double()
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    direct = torch.randn(T, B, HIDDEN, dtype=torch.float64)

    cell = getattr(nn, f"{type(module).__name__}Cell")(INPUT, HIDDEN, **options).double()
    states, cells = [torch.zeros(B, HIDDEN, dtype=torch.float64)], [torch.zeros(B, HIDDEN, dtype=torch.float64)]
    for step in x:
        made = cell(step, (states[-1], cells[-1]) if mode == "LSTM" else states[-1])
        states.append(made[0] if mode == "LSTM" else made)
        cells += [made[1]] if mode == "LSTM" else []
    loss = (torch.stack(states[1:]) * direct).sum()
    expected = torch.autograd.grad(loss, [x, *states[1:], *cells[1:]])

    adjoint = make_adjoint(tuple(cell.parameters()), Shape.of(module), x.dtype)
    with torch.no_grad():
        start = cells[0] if mode == "LSTM" else None
        factors = adjoint.prepare(x.detach(), torch.stack(states[:-1]).detach(), start)
        hidden, cell_gradient = adjoint.sweep(factors, direct[:, None], adjoint.new_carry(1, B), Ends())
        to_input = adjoint.input_delta(factors, hidden, cell_gradient) @ adjoint.weights.w_ih
    near = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(hidden[:, 0], torch.stack(expected[1 : T + 1]), **near)
    torch.testing.assert_close(to_input[:, 0], expected[0], **near)
    if cell_gradient is not None:
        torch.testing.assert_close(cell_gradient[:, 0], torch.stack(expected[T + 1 :]), **near)
