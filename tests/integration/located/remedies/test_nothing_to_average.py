"""A loss that is NaN because it has nothing to average: what is empty is suspected, and the remedy mends it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_gradwatch import EventKind
from tests.integration.located.remedies.fits import fit

NOTHING = torch.zeros(64, 9, dtype=torch.bool)


def outputs(net, b):
    return net[1](net[0](b[0])[0])


def mean(net, b):
    return outputs(net, b)[..., 0][b[1]].square().mean()


def mean_mended(net, b):
    return outputs(net, b)[..., 0][b[1]].square().sum() / b[1].sum().clamp(min=1)


def mse(net, b):
    return functional.mse_loss(2 * outputs(net, b)[..., 0][b[1]], b[0][..., 0][b[1]])


def mse_mended(net, b):
    return mse(net, b) if b[1].any() else 0.0 * outputs(net, b).sum()


def ignored(net, b, reduction="mean"):
    target = torch.full(b[1].shape, -100)
    return functional.cross_entropy(outputs(net, b).transpose(1, 2), target, reduction=reduction)


def ignored_mended(net, b):
    return ignored(net, b, "sum") / b[1].sum().clamp(min=1)


def masked(net, b):
    return (outputs(net, b)[..., 0].square() * b[1]).sum() / b[1].sum()


def masked_mended(net, b):
    return (outputs(net, b)[..., 0].square() * b[1]).sum() / (b[1].sum() + 1e-12)


CASES = {
    "mean": (mean, mean_mended, "a tensor without entries, which"),
    "mse_loss": (mse, mse_mended, "a tensor without entries, which"),
    "cross_entropy": (ignored, ignored_mended, "cross_entropy (nll_loss), which is NaN where ignore_index"),
    "division": (masked, masked_mended, "a division, which"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_empty_is_suspected_and_mended(name, tmp_path):
    """Nothing else is suspected before it."""
    broken, mended, suspect = CASES[name]
    if "without entries" in suspect and not hasattr(
        torch.ones(1, requires_grad=True).mean().grad_fn, "_input_metadata"
    ):
        pytest.skip("PyTorch before 2.6 may not tell the sizes of what an operation made")
    torch.manual_seed(0)
    net, data = nn.ModuleList([nn.GRU(3, 8, batch_first=True), nn.Linear(8, 4)]), (torch.randn(64, 9, 3), NOTHING)
    (event,) = fit(tmp_path / "a", net, broken, data, steps=4).begun(EventKind.NONFINITE_LOSS)
    assert f"on the way: {suspect}" in event.message
    net[0].reset_parameters()
    net[1].reset_parameters()
    assert not fit(tmp_path / "b", net, mended, data, steps=4).begun(EventKind.NONFINITE_LOSS)


def test_a_division_is_no_suspect_where_another_is(tmp_path):
    """Every loss is divided by something: only a root that is there as well is named."""
    torch.manual_seed(0)
    net, data = nn.ModuleList([nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 1)]), (torch.randn(64, 9, 3),)
    told = fit(tmp_path, net, lambda n, b: (-outputs(n, b).square()).sqrt().sum() / len(b[0]), data, steps=4)
    (event,) = told.begun(EventKind.NONFINITE_LOSS)
    assert "sqrt, which" in event.message
    assert "division" not in event.message
