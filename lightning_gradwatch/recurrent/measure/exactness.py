"""Whether what a sweep found is exact, and whether what the fused operator gave is to be used."""

from __future__ import annotations

import torch

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.dropout import missing_masks
from lightning_gradwatch.recurrent.measure.anchors import smallest_normal, too_small
from lightning_gradwatch.recurrent.measure.stack import Stack

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""By how much recomputed outputs may differ from recorded ones, relative to the
largest, in an exact measurement.
"""

ROUNDINGS = 8
"""The same of a replay in float32 of what was recorded in half precision, in unit roundoffs
(2⁻⁸ of bfloat16, 2⁻¹¹ of float16). It is not exact anyhow, but it must be the same course.

Measured on a CPU over 1,081 calls (RNN, LSTM, GRU, 16 to 256 hidden, 10 to 400 timesteps, under
autocast and in half precision throughout): with PyTorch's own start, or recurrent weights half as
large, outputs differed by 4.3 roundoffs at most; with weights twice as large an LSTM's and GRU's by
3.5, an RNN's by 12; with weights four times as large by anything up to the whole range. In 336 more
calls, gone through timestep by timestep as well, total norms were off by at most 9 % where outputs
differed by less than 8 roundoffs, by up to 62 % between 8 and 16, and without bound above.
"""

FREE_TOLERANCES = {
    **TOLERANCES,
    **{half: ROUNDINGS * torch.finfo(half).eps / 2 for half in (torch.bfloat16, torch.float16)},
}
"""The same of a replay by the fused operator."""


def obstacle(call: RecurrentCall) -> str | None:
    """What is known beforehand to spoil a replay by the fused operator; None if nothing is."""
    return None if missing_masks(call) is None else "the dropout between layers is not known"


def disagreement(stack: Stack) -> str | None:
    """Why what the fused operator gave is not to be used; None where it is.

    It runs freely from a chunk's first state on, so that a chaotic network leaves its recorded
    course by rounding alone; and gradients that are not finite spoil all of a chunk.
    """
    if not all(one.is_finite() for pair in stack.directions for one in pair):
        return "its states or gradients are not finite"
    for error in [one.replay_error for one in stack.directions[-1]] + _final_errors(stack):
        if not error <= FREE_TOLERANCES.get(stack.call.output.dtype, 0.0):
            return f"replayed freely, its states differ from the recorded ones by {error:.2g}"
    return None


def _final_errors(stack: Stack) -> list[float]:
    return [one.final_error for pair in stack.directions for one in pair]


def _too_small(stack: Stack) -> str | None:
    """Whether gradients that arrived, and are not added to larger ones, lie where the
    number format holds fewer digits.
    """
    normal = smallest_normal(stack.call)
    for one in stack.directions[-1]:
        for direct, total in ((one.direct, one.total), (one.direct_cell, one.total_cell)):
            if direct is not None and total is not None:
                small = (direct > 0) & (direct < normal) & (total[:, 0] < normal)
                if stack.anchors.smallest < normal or bool(small.any()):
                    return too_small(normal)
    return None


def _is_reached_past_the_end(stack: Stack) -> bool:
    """Whether the gradient of a masked call's output is not zero where the mask is."""
    mask, sent = stack.call.mask, stack.call.output_gradient.value()
    return mask is not None and sent is not None and bool(sent[~mask].any())


def inexact_reason(stack: Stack) -> str | None:
    """Why the figures are not exact; None if they are."""
    if stack.call.doubt is not None:
        return stack.call.doubt
    changed = stack.call.changed()
    if changed is not None:
        return f"the {changed} was changed in place after the forward"
    missing = missing_masks(stack.call)
    if missing is not None:
        return missing
    if _is_reached_past_the_end(stack):
        return "the loss reaches outputs past the end of a sequence, which are those of its last timestep again"
    small = _too_small(stack)
    if small is not None:
        return small
    recorded_dtype = stack.call.output.dtype
    if recorded_dtype not in TOLERANCES:
        return f"computed in {str(recorded_dtype).removeprefix('torch.')}, replayed in float32"
    for what, errors in (
        ("outputs", [one.replay_error for one in stack.directions[-1]]),
        ("final states", _final_errors(stack)),
    ):
        beyond = [error for error in errors if not error <= TOLERANCES[recorded_dtype]]
        if beyond:
            return f"recomputed {what} differ from the recorded ones by {max(beyond):.2g}"
    return None
