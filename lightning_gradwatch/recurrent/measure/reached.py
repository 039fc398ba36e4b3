"""Which sequences of a batch the loss reaches at all."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.call import RecurrentCall


@torch.no_grad()
def reached_sequences(call: RecurrentCall) -> axes.Bool[Tensor, " batch"]:
    """Whether the loss sends anything to a sequence, to its output or its final states:
    ``(batch,)``, boolean, on the CPU.

    What is not finite counts as something. One pass over the gradients that have arrived, and
    a host sync: for sampled steps.
    """
    reached = torch.zeros(_batch_size(call), dtype=torch.bool)
    output = call.output_gradient.value()
    if output is not None:
        reached |= _of_output(call, output)
    for slot in (call.h_n_gradient, call.c_n_gradient):
        gradient = slot.value()
        if gradient is not None:
            rows = _any(gradient)  # (layers·directions, batch), without batch if unbatched
            reached |= rows.any(0).cpu() if rows.dim() == 2 else rows.any().cpu()[None]
    return reached


def _batch_size(call: RecurrentCall) -> int:
    if call.batch_sizes is not None:
        return int(call.batch_sizes[0])
    if call.input.dim() == 2:
        return 1
    return call.input.shape[0 if call.shape.batch_first else 1]


def _of_output(call: RecurrentCall, gradient: axes.Float[Tensor, "... width"]) -> axes.Bool[Tensor, " batch"]:
    rows = _any(gradient)
    if call.batch_sizes is not None:
        return _of_packed(call, rows.cpu())
    if rows.dim() == 1:  # unbatched
        return rows.any().cpu()[None]
    return rows.any(1 if call.shape.batch_first else 0).cpu()


def _any(gradient: axes.Float[Tensor, "*axes width"]) -> axes.Bool[Tensor, " *axes"]:
    """Whether anything in a row is not 0. The largest and the smallest number say so, and a mask as
    large as the gradient need not be made.
    """
    return (gradient.amax(-1) != 0) | (gradient.amin(-1) != 0)


def _of_packed(call: RecurrentCall, rows: axes.Bool[Tensor, " row"]) -> axes.Bool[Tensor, " batch"]:
    """From the rows of packed data, time by time and longest
    sequence first, to the caller's order.
    """
    assert call.batch_sizes is not None
    position = torch.cat([torch.arange(int(count)) for count in call.batch_sizes])
    reached = torch.zeros(int(call.batch_sizes[0]), dtype=torch.bool)
    reached[position[rows]] = True
    return reached if call.unsorted_indices is None else reached[call.unsorted_indices.cpu()]
