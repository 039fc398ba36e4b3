"""The weights of one layer and direction of a recurrent module, by gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.arguments import check

Recurrent = nn.RNNBase | nn.RNNCellBase

GATES = {"RNN": ("h",), "LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n")}
"""Kind → its gates, in the order in which PyTorch stacks them."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer and direction.

    Args:
        kind: ``RNN``, ``LSTM`` or ``GRU``.
        relu: whether it is an RNN with ``nonlinearity="relu"``.
        layer, direction: which one; a cell is layer 0, ``forward``.
        w_hh: recurrent weights ``(gates·hidden, state)``.
        b_ih, b_hh: its two biases ``(gates·hidden,)``, which PyTorch adds; None without.
    """

    kind: str
    relu: bool
    layer: int
    direction: str
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None

    @property
    def hidden_size(self) -> int:
        """Width of a gate."""
        return self.w_hh.shape[0] // len(GATES[self.kind])

    def gate(self, tensor: Tensor, name: str) -> Tensor:
        """The rows of a gate, as a view."""
        start = GATES[self.kind].index(name) * self.hidden_size
        return tensor[start : start + self.hidden_size]

    def bias(self, name: str) -> Tensor | None:
        """A gate's bias, the sum of both ``(hidden,)``; None without biases."""
        if self.b_ih is None or self.b_hh is None:
            return None
        return (self.gate(self.b_ih, name) + self.gate(self.b_hh, name)).detach()

    def set_bias(self, name: str, value: Tensor | float) -> None:
        """Make the sum of a gate's two biases ``value``."""
        assert self.b_ih is not None
        assert self.b_hh is not None
        self.gate(self.b_ih, name).copy_(torch.as_tensor(value))
        self.gate(self.b_hh, name).zero_()


def kind_of(module: Recurrent) -> str:
    """``RNN``, ``LSTM`` or ``GRU``."""
    if isinstance(module, nn.RNNBase):
        return "RNN" if module.mode.startswith("RNN") else module.mode
    return {4: "LSTM", 3: "GRU"}.get(module.weight_hh.shape[0] // module.hidden_size, "RNN")


def layers_of(module: Recurrent) -> Iterator[LayerWeights]:
    """Each layer and direction of a module, the lowest first.

    Raises:
        ValueError: its weights are not its own parameters, as under weight normalisation.
    """
    fused = isinstance(module, nn.RNNBase)
    relu = getattr(module, "mode", "") == "RNN_RELU" or getattr(module, "nonlinearity", "") == "relu"
    for layer in range(module.num_layers if fused else 1):
        for direction in ("forward", "reverse") if fused and module.bidirectional else ("forward",):
            ending = f"_l{layer}{'_reverse' * (direction == 'reverse')}" if fused else ""
            yield LayerWeights(
                kind=kind_of(module),
                relu=relu,
                layer=layer,
                direction=direction,
                w_hh=_own_parameter(module, f"weight_hh{ending}"),
                b_ih=_own_parameter(module, f"bias_ih{ending}") if module.bias else None,
                b_hh=_own_parameter(module, f"bias_hh{ending}") if module.bias else None,
            )


def _own_parameter(module: nn.Module, name: str) -> Tensor:
    """A parameter that may be written into.

    Raises:
        ValueError: it is computed from others, is spread over ranks, or has no shape yet.
    """
    parameter: Any = vars(module)["_parameters"].get(name)
    check(
        type(parameter) is nn.Parameter,
        "module",
        "a recurrent module that holds its weights itself, whole",
        f"{type(module).__name__}.{name}, which is computed from others or spread over ranks",
        "Set its start before weight normalisation, pruning or sharding is put on.",
    )
    return parameter
