"""What the forget gate's bias alone would give, and what it gives with the recurrent weights, beside what an LSTM gives
whose inputs are noise.

    python -m benchmarks.starts.forget_gate

128 units, 400 timesteps, standard normal inputs, the loss at the end; the recurrent weights are PyTorch's own, times a factor. Printed are
horizons in timesteps: measured, and in brackets those of ``expected``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_gradwatch import compare_starts
from lightning_gradwatch.starts import StartRow
from lightning_gradwatch.thresholds import HORIZON_RATIO

HIDDEN, TIMESTEPS = 128, 400
BIASES = (0.0, 1.0, 2.0, 3.0)
FACTORS = (0.0, 0.25, 0.5, 1.0)


def measured(bias: float, factor: float, *, timesteps: int = TIMESTEPS, seed: int = 0) -> StartRow:
    """One row of ``compare_starts``."""
    torch.manual_seed(seed)
    module = nn.LSTM(8, HIDDEN, batch_first=True)
    with torch.no_grad():
        module.weight_hh_l0 *= factor
        module.bias_ih_l0[HIDDEN : 2 * HIDDEN], module.bias_hh_l0[HIDDEN : 2 * HIDDEN] = bias, 0.0
    (row,) = compare_starts(module, torch.randn(16, timesteps, 8), [], loss=_loss)
    return row


def expected(bias: float, factor: float, longest: int = TIMESTEPS) -> int | None:
    """The horizon of an LSTM near rest (small states and inputs), over recurrent weights that are drawn at random; None where
    the gradient outlives ``longest``.

    There i = o = ½, f = σ(b), tanh is the identity, and the gradient of the cell state goes back by f·1 + i·o·Uᵀ, U the
    candidate's recurrent weights: d² entries of variance ρ²/d, ρ² = factor²/3. Of large ones the powers of U send a vector in
    directions that have nothing to do with each other, so that what is left of its square after k steps is
    R_k = Σ_j C(k, j)² f^{2(k−j)} (i·o·ρ)^{2j}. Can, Krishnamurthy and Schwab 2020 (arXiv 2002.00025) study such matrices of
    LSTMs and GRUs by their spectra. Of h and c together, whose first gradients are as 1 to o, R_k + (i·ρ)² R_{k−1} is left of
    a share of o²/(1+o²).
    """
    i = o = 0.5
    f, rho = 1 / (1 + math.exp(-bias)), factor / math.sqrt(3)

    def left(k: int) -> float:
        both = _power(k, f, i * o * rho) + (i * rho) ** 2 * _power(k - 1, f, i * o * rho)
        return math.sqrt(both * o**2 / (1 + o**2))

    return next((k for k in range(1, longest) if left(k) < HORIZON_RATIO), None)


def _power(k: int, f: float, a: float) -> float:
    return sum((math.comb(k, j) * f ** (k - j) * a**j) ** 2 for j in range(k + 1))


def _loss(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)[0][:, -1].square().mean()


def main() -> None:
    """Print the table."""
    print("| forget bias | by gate bias |" + "".join(f" W_hh × {factor:g} |" for factor in FACTORS))
    print("|---|---|" + "---|" * len(FACTORS))
    for bias in BIASES:
        rows = [measured(bias, factor) for factor in FACTORS]
        theory = [expected(bias, factor) for factor in FACTORS]
        cells = [f"{'≥ ' * row.censored}{row.horizon} ({t or '–'})" for row, t in zip(rows, theory, strict=True)]
        print(f"| {bias:g} | {rows[0].predicted} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
