"""Subclasses of a fused module that compute PyTorch's recurrence by code of their own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.read_call import read_call

OWN_RECURRENCE = "its forward does not call PyTorch's own recurrence"
"""Why a call is not kept that neither calls PyTorch's operator nor makes what that would."""

_OPERATORS: dict[str, Any] = {
    "LSTM": torch._VF.lstm,  # type: ignore[attr-defined]
    "GRU": torch._VF.gru,  # type: ignore[attr-defined]
    "RNN_TANH": torch._VF.rnn_tanh,  # type: ignore[attr-defined]
    "RNN_RELU": torch._VF.rnn_relu,  # type: ignore[attr-defined]
}

_NEAR = 1e-3
"""How near the two outputs must be, relative to the largest entry. It tells recurrences apart; how
exact a measurement is, the replay says.
"""


class OwnRecurrences:
    """Of one watch. It is tried once for each module."""

    def __init__(self) -> None:
        self._same: dict[nn.Module, bool] = {}

    def read(
        self, name: str, index: int, module: nn.RNNBase, inputs: tuple[object, ...], outputs: object
    ) -> RecurrentCall:
        """The call, to be replayed as PyTorch's.

        Raises:
            TypeError: it is none.
        """
        try:
            call = read_call(name, index, module, inputs, outputs, None)
        except TypeError as error:
            raise TypeError(OWN_RECURRENCE) from error
        if not self._is_same(module, call):
            raise TypeError(OWN_RECURRENCE)
        return call

    def _is_same(self, module: nn.RNNBase, call: RecurrentCall) -> bool:
        if module in self._same:
            return self._same[module]
        same = is_pytorchs(module, call)
        if same or bool(call.output.isfinite().all()):  # of what is not finite nothing can be told
            self._same[module] = same
        return same


@torch.no_grad()
def is_pytorchs(module: nn.RNNBase, call: RecurrentCall) -> bool:
    """Whether a call made what PyTorch's own operator would have: then it can be replayed.

    The operator runs once more, without masks between the layers, which nobody could draw again.
    """
    if call.batch_sizes is not None or call.input.dim() != 3 or call.shape.dropout:
        return False
    shape, batch = call.shape, call.input.shape[0 if call.shape.batch_first else 1]
    layers = shape.num_layers * shape.num_directions
    zeros = [call.input.new_zeros(layers, batch, width) for width in (shape.state_size, shape.hidden_size)]
    h0 = zeros[0] if call.h0 is None else call.h0
    hx = (h0, zeros[1] if call.c0 is None else call.c0) if shape.mode == "LSTM" else h0
    try:
        repeated = cast(
            "tuple[Tensor, ...]",
            _OPERATORS[shape.mode](
                call.input,
                hx,
                list(call.weights),
                shape.has_bias,
                shape.num_layers,
                0.0,
                module.training,
                shape.num_directions == 2,
                shape.batch_first,
            ),
        )
    except (RuntimeError, TypeError):  # the weights, or what it was given, are of another form
        return False
    return all(_is_near(made, again) for made, again in zip((call.output, call.h_n, call.c_n), repeated, strict=False))


def _is_near(made: Tensor | None, again: Tensor) -> bool:
    if made is None or made.shape != again.shape:
        return False
    return bool((made - again).abs().max() <= _NEAR * again.abs().max())
