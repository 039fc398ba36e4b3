"""What kind of recurrence a fused module computes, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_gradwatch.recurrent.weakly_held import WeaklyHeld


@dataclass(frozen=True, slots=True)
class Shape(WeaklyHeld):
    """What kind of recurrence a module computes, and how large it is.

    Args:
        mode: PyTorch's own name: ``RNN_TANH``, ``RNN_RELU``, ``LSTM`` or ``GRU``.
        hidden_size: width of the gates, and of c.
        state_size: width of h; differs from ``hidden_size`` only with ``proj_size``.
    """

    mode: str
    num_layers: int
    num_directions: int
    hidden_size: int
    state_size: int
    has_bias: bool
    dropout: float
    batch_first: bool

    @classmethod
    def of(cls, module: nn.RNNBase) -> Shape:
        """The shape of a fused module as it is now."""
        return cls(
            mode=module.mode,
            num_layers=module.num_layers,
            num_directions=2 if module.bidirectional else 1,
            hidden_size=module.hidden_size,
            state_size=module.proj_size or module.hidden_size,
            has_bias=module.bias,
            dropout=float(module.dropout) if module.training and module.num_layers > 1 else 0.0,
            batch_first=module.batch_first,
        )

    @property
    def kind(self) -> str:
        """The kind as the run log names it: ``RNN``, ``LSTM`` or ``GRU``."""
        return "RNN" if self.mode.startswith("RNN") else self.mode

    @property
    def weights_per_direction(self) -> int:
        """How many flat weights one layer has in one direction."""
        return 2 + 2 * self.has_bias + (self.state_size != self.hidden_size)
