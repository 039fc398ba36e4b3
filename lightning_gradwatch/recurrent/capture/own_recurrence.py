"""Subclasses of a fused module that compute PyTorch's recurrence by code of their own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.read_call import read_call
from lightning_gradwatch.recurrent.graph.between import is_reached

OWN_RECURRENCE = "its forward does not call PyTorch's own recurrence"
"""Why a call is not kept that neither calls PyTorch's operator nor makes what that would."""

MADE_OF_ONE_ANOTHER = (
    "its output and its final states are made of one another: what the loss sends to one may count twice"
)
"""Why the figures of a call are not exact whose gradients cannot be told apart."""

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
    """Of one watch. It is tried once for each module, and once more with a mask."""

    def __init__(self) -> None:
        self._same: dict[tuple[nn.Module, bool], bool] = {}
        self._doubt: dict[tuple[nn.Module, bool], str | None] = {}

    def read(
        self,
        name: str,
        index: int,
        module: nn.RNNBase,
        inputs: tuple[object, ...],
        outputs: object,
        mask: object = None,
    ) -> RecurrentCall:
        """The call, to be replayed as PyTorch's.

        Args:
            mask: what the forward was given as its ``mask``; one that says where the sequences go
                on is that of torchrl's classes, with which a state stays as it is past the end.

        Raises:
            TypeError: it is none.
        """
        try:
            call = read_call(name, index, module, inputs, outputs, None)
        except TypeError as error:
            raise TypeError(OWN_RECURRENCE) from error
        if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == call.input.shape[:2]:
            call.mask = mask
        if not self._is_same(module, call):
            raise TypeError(OWN_RECURRENCE)
        call.by_operator = False
        way = module, call.mask is not None
        if way not in self._doubt:
            self._doubt[way] = MADE_OF_ONE_ANOTHER if _is_mixed(call) else None
        call.doubt = self._doubt[way]
        return call

    def _is_same(self, module: nn.RNNBase, call: RecurrentCall) -> bool:
        way = module, call.mask is not None
        if way in self._same:
            return self._same[way]
        same = is_pytorchs(module, call)
        if same or bool(call.output.isfinite().all()):  # of what is not finite nothing can be told
            self._same[way] = same
        return same


def _is_mixed(call: RecurrentCall) -> bool:
    """Whether a gradient of the output goes through a final state, or the other way round."""
    finals = [state.grad_fn for state in (call.h_n, call.c_n) if state is not None]
    output = call.output.grad_fn
    if output is None:
        return False
    return any(final is not None and (is_reached([output], final) or is_reached([final], output)) for final in finals)


@torch.no_grad()
def is_pytorchs(module: nn.RNNBase, call: RecurrentCall) -> bool:
    """Whether a call made what PyTorch's own operator would have: then it can be replayed.

    The operator runs once more, without masks between the layers, which nobody could draw again.
    """
    if call.batch_sizes is not None or call.input.dim() != 3 or call.shape.dropout:
        return False
    try:
        output, *finals = _again(module, call)
    except (RuntimeError, TypeError):  # the weights, or what it was given, are of another form
        return False
    made = call.output if call.mask is None else call.output * call.mask[..., None]
    again = zip((made, call.h_n, call.c_n), (output, *finals), strict=False)
    return all(_is_near(once, twice) for once, twice in again)


def _again(module: nn.RNNBase, call: RecurrentCall) -> tuple[Tensor, ...]:
    """Output, h_n and c_n, if it has one, as PyTorch's operator makes them; the output is 0 past
    the end of a sequence.
    """
    shape, batch_first = call.shape, call.shape.batch_first
    batch = call.input.shape[0 if batch_first else 1]
    layers = shape.num_layers * shape.num_directions
    zeros = [call.input.new_zeros(layers, batch, width) for width in (shape.state_size, shape.hidden_size)]
    states = [zeros[0] if call.h0 is None else call.h0]
    if shape.mode == "LSTM":
        states.append(zeros[1] if call.c0 is None else call.c0)
    options = (shape.has_bias, shape.num_layers, 0.0, module.training, shape.num_directions == 2)
    if call.mask is None:
        hx = states if len(states) > 1 else states[0]
        return _operate(shape.mode, call.input, hx, list(call.weights), *options, batch_first)
    lengths = call.mask.sum(1 if batch_first else 0).cpu()
    packed = pack_padded_sequence(call.input, lengths, batch_first, enforce_sorted=False)
    given = [state[:, packed.sorted_indices] for state in states]
    hx = given if len(given) > 1 else given[0]
    rows, *finals = _operate(shape.mode, packed.data, packed.batch_sizes, hx, list(call.weights), *options)
    made = PackedSequence(rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    output, _ = pad_packed_sequence(made, batch_first, total_length=call.timesteps())
    return output, *(final[:, packed.unsorted_indices] for final in finals)


def _operate(mode: str, *arguments: object) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", _OPERATORS[mode](*arguments))


def _is_near(made: Tensor | None, again: Tensor) -> bool:
    if made is None or made.shape != again.shape:
        return False
    return bool((made - again).abs().max() <= _NEAR * again.abs().max())
