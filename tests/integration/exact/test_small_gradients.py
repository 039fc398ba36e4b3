"""Losses so small that float32 no longer holds their gradients: exact against a float64 oracle, or told."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, load_run
from tests.models import trainer
from tests.oracles import gradients, norms, unroll

KINDS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
CELLS = {"RNN": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}


class Scaled(pl.LightningModule):
    """The mean square of the last state, or of all of them, times ``scale``; by a fused module or by a cell."""

    def __init__(self, rnn: nn.Module, scale: float, every: bool = False) -> None:
        super().__init__()
        self.rnn, self.scale, self.every = rnn, scale, every

    def states(self, x: Tensor) -> list[Tensor]:
        if isinstance(self.rnn, nn.RNNBase):
            return list(self.rnn(x)[0].unbind(1))
        made: list[Any] = [None]
        for row in x.unbind(1):
            made.append(self.rnn(row, made[-1]))
        return [state[0] if isinstance(state, tuple) else state for state in made[1:]]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return loss_of(self.states(batch[0]), self.every) * self.scale

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def loss_of(states: list[Tensor], every: bool) -> Tensor:
    return sum(h.square().mean() for h in states) if every else states[-1].square().mean()  # type: ignore[return-value]


def fitted(rnn: nn.Module, scale: float, folder: Any, every: bool = False, precision: Any = "32-true") -> list[Any]:
    watch = GradWatch(max_sequences=None, keep_sequences=True, anchors=1, dirpath=folder / "run", summary=False)
    data = DataLoader(TensorDataset(inputs()), 2)
    trainer(folder, [watch], max_steps=1, precision=precision).fit(Scaled(rnn, scale, every), data)
    return [r for r in load_run(folder / "run").profile_records if r["state"] == "h"]


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 2 * 20 * 3).reshape(2, 20, 3)


def truth(rnn: nn.Module, every: bool) -> np.ndarray:
    """‖∂L/∂h_t‖ of the loss as it is without a scale, ``(sequence, time)``, in float64."""
    kind = next(name for name, base in {**KINDS}.items() if isinstance(rnn, (base, CELLS[name])))
    wide = KINDS[kind](3, 6, batch_first=True).double()
    wide.load_state_dict({k if k.endswith("_l0") else f"{k}_l0": v.double() for k, v in rnn.state_dict().items()})
    made = [unroll(wide, x.double()) for x in inputs()]
    loss = loss_of([torch.cat(rows) for rows in zip(*(one.output for one in made), strict=True)], every)
    return np.stack([norms(gradients(loss, one.h[0][0])).numpy() for one in made])


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-30, 1e-33, 1e-38, 1e-42, 1e-45, 0.0])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_called_exact_is_so_at_every_size_of_the_loss(
    kind: str, fused: bool, every: bool, scale: float, tmp_path
) -> None:
    """Totals and lags are those of float64 to 1e-5 wherever the profile says exact, and the reason is given where they are not."""
    torch.manual_seed(0)
    rnn = KINDS[kind](3, 6, batch_first=True) if fused else CELLS[kind](3, 6)
    records = fitted(rnn, scale, tmp_path, every)
    expected = truth(rnn, every)
    for record in records:
        if record["exact"]:
            found = np.array(record["total_by_sequence"])
            if not found.any():
                assert scale < 1e-43  # the gradient of the training step itself is 0
                continue
            assert np.abs(found / (expected * scale) - 1).max() < 1e-5
            assert len(record["lagged"]) == 20
            if not every and kind != "LSTM":
                np.testing.assert_allclose(
                    record["lagged"], np.median((expected.T / expected[:, -1]), 1)[::-1], rtol=1e-5
                )
        else:
            assert "so small" in record["inexact_reason"]
    if scale >= (1e-30 if fused else 1e-20):
        assert [r["exact"] for r in records] == [True]
    if scale in (1e-38, 1e-42):
        assert [r["exact"] for r in records] == [False]


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_narrow_formats_say_which_digits_they_lack(precision: str, tmp_path) -> None:
    """Gradients under a narrow format's smallest normal number are named as the reason."""
    torch.manual_seed(0)
    (record,) = fitted(
        nn.GRU(3, 6, batch_first=True), {"bf16-true": 1e-38, "16-true": 1e-5}[precision], tmp_path, True, precision
    )
    assert "so small" in record["inexact_reason"]
