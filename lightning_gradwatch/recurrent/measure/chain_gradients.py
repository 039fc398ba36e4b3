"""Several calls of a fused module that are one sequence, and the
gradients of all its hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.chain import Chain
from lightning_gradwatch.recurrent.gradient_slot import GradientSlot
from lightning_gradwatch.recurrent.measure.reached import reached_sequences
from lightning_gradwatch.recurrent.measure.stack import TOLERANCES
from lightning_gradwatch.recurrent.measure.sweep import Sweep, sweep
from lightning_gradwatch.recurrent.trail import Gradients


@dataclass(slots=True)
class Norms:
    """Of the gradient of every layer's h, and of an LSTM's c: ``(time, sequence)``, float64."""

    h: list[axes.Float[Tensor, "time sequence"]]
    c: list[axes.Float[Tensor, "time sequence"]]
    inexact_reason: str | None

    def both(self, layer: int) -> axes.Float[Tensor, "time sequence"]:
        """Of h and c together."""
        return torch.hypot(self.h[layer], self.c[layer]) if self.c else self.h[layer]

    def agrees(self, other: Sweep, dtype: torch.dtype) -> bool:
        """Whether a sweep of all calls as one found the same."""
        for layer, (direction,) in enumerate(other.directions):
            for ours, theirs in ((self.h, direction.total), (self.c, direction.total_cell)):
                if theirs is not None:
                    difference = (ours[layer] - theirs[:, 0]).abs().max()
                    if not difference <= TOLERANCES.get(dtype, 1e-2) * ours[layer].abs().max():
                        return False
        return True


def as_one(chain: Chain) -> RecurrentCall:
    """A plain chain as one call over all its timesteps. What the loss sends to a state
    between two calls is left out.
    """
    first, last = chain.calls[0], chain.calls[-1]
    time = first.time_dim()
    sent = [_or_zeros(call.output_gradient.value(), call.output) for call in chain.calls]
    return replace(
        first,
        input=torch.cat([call.input for call in chain.calls], time),
        output=torch.cat([call.output for call in chain.calls], time),
        h_n=last.h_n,
        c_n=last.c_n,
        output_gradient=_slot(torch.cat(sent, time)),
        h_n_gradient=last.h_n_gradient,
        c_n_gradient=last.c_n_gradient,
        parts=tuple(chain.calls),
        doubt=_first_doubt(chain.calls),
        trail=None,
    )


def without_ends(chain: Chain, joined: RecurrentCall) -> RecurrentCall:
    """A joined call without what the loss sends to the ends of all calls but the last: where it
    sends something to h_n too, the output's gradient is not all of it, and no anchor can stand
    there.
    """
    sent = joined.output_gradient.value()
    assert sent is not None
    ends = torch.tensor(chain.lengths()[:-1], device=sent.device).cumsum(0) - 1
    return replace(joined, output_gradient=_slot(sent.index_fill(joined.time_dim(), ends, 0.0)))


def arrived(chain: Chain) -> list[Gradients]:
    """What the whole loss sent to the end of each call: directly, or through the calls after it."""
    return [cast("Gradients", tuple(slot.value() for slot in call.slots())) for call in chain.calls]


def reached_by(chain: Chain) -> axes.Bool[Tensor, " batch"]:
    """Whether the loss sends anything to a sequence at any timestep:
    ``(batch,)``, boolean, on the CPU.
    """
    return torch.stack([reached_sequences(call) for call in chain.calls]).any(0)


def measure_ends(chain: Chain, gradients: Sequence[Gradients], sequences: list[int]) -> Norms:
    """The gradients of all hidden states, from those that arrive at
    each call's output, h_n and c_n.

    Calls of one length are swept at once, side by side.
    """
    first, lengths = chain.calls[0], chain.lengths()
    layers, starts = range(first.shape.num_layers), np.cumsum([0, *lengths])
    h, c = ([torch.zeros(sum(lengths), len(sequences), dtype=torch.float64) for _ in layers] for _ in range(2))
    reasons: list[str | None] = []
    for group in _groups(chain.calls, lengths):
        if len(group) == 1:
            alone = _alone(chain.calls[group[0]], gradients[group[0]])
            swept = sweep(alone, anchors=0, sequences=sequences)
        else:
            parts = [_alone(chain.calls[place], gradients[place]) for place in group]
            everything = list(range(len(parts) * len(sequences)))
            swept = sweep(_side_by_side(parts, sequences), anchors=0, sequences=everything)
        reasons.append(swept.inexact_reason)
        for layer, (direction,) in enumerate(swept.directions):
            for into, total in ((h, direction.total), (c, direction.total_cell)):
                if total is not None:
                    columns = total[:, 0].unflatten(1, (len(group), len(sequences)))
                    for column, place in enumerate(group):
                        into[layer][starts[place] : starts[place + 1]] = columns[:, column]
    reason = next((reason for reason in reasons if reason), None)
    return Norms(h, c if first.shape.mode == "LSTM" else [], reason)


def _groups(calls: Sequence[RecurrentCall], lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of calls that may be swept side by side: of one length, with the same weights
    and no dropout to be drawn again.
    """
    first = calls[0]
    alike = all(now is then for call in calls for now, then in zip(call.weights, first.weights, strict=True))
    if first.shape.dropout or not alike:
        return [[place] for place in range(len(calls))]
    return [[place for place, other in enumerate(lengths) if other == length] for length in sorted(set(lengths))]


def _alone(call: RecurrentCall, gradients: Gradients) -> RecurrentCall:
    """A call to which other gradients arrive."""
    output, h_n, c_n = map(_slot, gradients)
    return replace(
        call, output_gradient=output, h_n_gradient=h_n, c_n_gradient=c_n, parts=(call,), trail=None, unjoined=None
    )


def _side_by_side(calls: Sequence[RecurrentCall], sequences: list[int]) -> RecurrentCall:
    """Calls as one of a larger batch, time-major: the chosen sequences of the
    first, then those of the next …
    """
    first = calls[0]
    chosen = torch.tensor(sequences, device=first.output.device)

    def batch(tensors: Sequence[Tensor | None], like: Sequence[Tensor | None]) -> Tensor | None:
        if all(tensor is None for tensor in tensors):
            return None
        return torch.cat([_or_zeros(*pair).index_select(1, chosen) for pair in zip(tensors, like, strict=True)], 1)

    x, output = [_time_major(c, c.input) for c in calls], [_time_major(c, c.output) for c in calls]
    h_n, c_n = [_batched(c.h_n) for c in calls], [_batched(c.c_n) for c in calls]
    sent = [_time_major(c, c.output_gradient.value()) for c in calls]
    return RecurrentCall(
        module=first.module,
        index=first.index,
        shape=replace(first.shape, batch_first=False),
        weights=first.weights,
        input=cast("Tensor", batch(x, x)),
        h0=batch([_batched(c.h0) for c in calls], h_n),
        c0=batch([_batched(c.c0) for c in calls], c_n),
        output=cast("Tensor", batch(output, output)),
        h_n=cast("Tensor", batch(h_n, h_n)),
        c_n=batch(c_n, c_n),
        output_gradient=_slot(batch(sent, output)),
        h_n_gradient=_slot(batch([_batched(c.h_n_gradient.value()) for c in calls], h_n)),
        c_n_gradient=_slot(batch([_batched(c.c_n_gradient.value()) for c in calls], c_n)),
        parts=tuple(calls),
        doubt=_first_doubt(calls),
        limit=first.limit,
    )


def _time_major(
    call: RecurrentCall, tensor: axes.Float[Tensor, "... width"] | None
) -> axes.Float[Tensor, "time batch width"] | None:
    """Input, output or their gradient as ``(time, batch, width)``."""
    if tensor is None:
        return None
    return tensor[:, None] if tensor.dim() == 2 else tensor.transpose(0, 1) if call.shape.batch_first else tensor


def _batched(state: axes.Float[Tensor, "cascade ... width"] | None) -> axes.Float[Tensor, "cascade batch width"] | None:
    """A state or its gradient as ``(layer, batch, width)``."""
    return state[:, None] if state is not None and state.dim() == 2 else state


def _first_doubt(calls: Sequence[RecurrentCall]) -> str | None:
    """Why one of them may not be what the operator made."""
    return next((call.doubt for call in calls if call.doubt), None)


def _or_zeros(tensor: Tensor | None, like: Tensor | None) -> Tensor:
    if tensor is not None:
        return tensor
    assert like is not None
    return torch.zeros_like(like)


def _slot(gradient: Tensor | None) -> GradientSlot:
    slot = GradientSlot()
    slot(gradient)
    return slot
