"""Which adjoint a recurrence has, and in which precision a call's is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.adjoint.base import Adjoint, Weights
from lightning_gradwatch.recurrent.adjoint.gru import GRUAdjoint
from lightning_gradwatch.recurrent.adjoint.lstm import LSTMAdjoint
from lightning_gradwatch.recurrent.adjoint.rnn import RNNAdjoint
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.shape import Shape

_ADJOINTS: dict[str, type[Adjoint[Any]]] = {
    "RNN_TANH": RNNAdjoint,
    "RNN_RELU": RNNAdjoint,
    "LSTM": LSTMAdjoint,
    "GRU": GRUAdjoint,
}
"""By PyTorch's own mode name."""


def computed_in(call: RecurrentCall) -> torch.dtype:
    """The dtype of all that is computed of a call: its weights', but no less than float32."""
    return torch.float64 if call.weights[0].dtype == torch.float64 else torch.float32


def adjoint_of(call: RecurrentCall, layer: int, direction: int) -> Adjoint[Any]:
    """That of one layer and direction, with its weights as they are now."""
    return make_adjoint(call.flat_weights(layer, direction), call.shape, computed_in(call))


def make_adjoint(flat: tuple[Tensor, ...], shape: Shape, dtype: torch.dtype) -> Adjoint[Any]:
    """That of weights in PyTorch's flat order."""
    return _ADJOINTS[shape.mode](Weights.unpack(flat, shape, dtype), shape)
