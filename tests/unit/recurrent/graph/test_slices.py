"""Whether tensors come from one that they are slices of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch.recurrent.graph.slices import have_common_origin

WAYS = {
    "slices of a batch": lambda x, layer: [x[:, t] for t in range(3)],
    "unbound": lambda x, layer: list(x.unbind(1)),
    "behind a layer": lambda x, layer: list(layer(x).unbind(1)),
    "a layer behind each": lambda x, layer: [torch.tanh(layer(x[:, t])) for t in range(3)],
}


@pytest.mark.parametrize("way", WAYS)
def test_timesteps_of_one_sequence(way: str) -> None:
    """However they are cut out of it."""
    assert have_common_origin(WAYS[way](torch.randn(2, 3, 4), nn.Linear(4, 4)))


def test_what_has_a_weight_in_common_alone() -> None:
    """Every use of a layer has its weight in common, and is no sequence for that."""
    layer = nn.Linear(4, 4)
    assert not have_common_origin([layer(torch.randn(2, 4)) for _ in range(3)])


def test_one_tensor_again_and_again() -> None:
    """A constant input is no sequence either."""
    x = torch.randn(2, 4)
    assert not have_common_origin([x, x, x])
