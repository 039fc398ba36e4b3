"""What the forget gate's bias alone would give, beside what an LSTM gives whose inputs are noise.

    python -m benchmarks.starts.forget_gate

128 units, 400 timesteps, standard normal inputs, the loss at the end; the recurrent weights are PyTorch's own, times a factor. Printed are
horizons in timesteps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_gradwatch import compare_starts
from lightning_gradwatch.starts import StartRow

HIDDEN, TIMESTEPS = 128, 400
BIASES = (0.0, 1.0, 2.0, 3.0)
FACTORS = (0.0, 0.25, 0.5, 1.0)


def measured(bias: float, factor: float) -> StartRow:
    """One row of ``compare_starts``."""
    torch.manual_seed(0)
    module = nn.LSTM(8, HIDDEN, batch_first=True)
    with torch.no_grad():
        module.weight_hh_l0 *= factor
        module.bias_ih_l0[HIDDEN : 2 * HIDDEN], module.bias_hh_l0[HIDDEN : 2 * HIDDEN] = bias, 0.0
    (row,) = compare_starts(module, torch.randn(16, TIMESTEPS, 8), [], loss=_loss)
    return row


def _loss(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)[0][:, -1].square().mean()


def main() -> None:
    """Print the table."""
    print("| forget bias | by gate bias |" + "".join(f" W_hh × {factor:g} |" for factor in FACTORS))
    print("|---|---|" + "---|" * len(FACTORS))
    for bias in BIASES:
        rows = [measured(bias, factor) for factor in FACTORS]
        cells = [f"{'≥ ' * row.censored}{row.horizon}" for row in rows]
        print(f"| {bias:g} | {rows[0].predicted} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
