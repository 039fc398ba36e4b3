"""The backward recurrence of each kind of fused module, in closed form."""

from lightning_gradwatch.recurrent.adjoint.base import Adjoint, Carry, Ends, Weights
from lightning_gradwatch.recurrent.adjoint.gru import GRUAdjoint
from lightning_gradwatch.recurrent.adjoint.lstm import LSTMAdjoint
from lightning_gradwatch.recurrent.adjoint.rnn import RNNAdjoint

ADJOINTS: dict[str, type[Adjoint]] = {  # pyright: ignore[reportMissingTypeArgument]
    "RNN_TANH": RNNAdjoint,
    "RNN_RELU": RNNAdjoint,
    "LSTM": LSTMAdjoint,
    "GRU": GRUAdjoint,
}
"""By PyTorch's own mode name."""

__all__ = ["ADJOINTS", "Adjoint", "Carry", "Ends", "Weights"]
