"""What lies before the cut of truncated backpropagation through time: one window further back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from lightning_gradwatch.profile import INPUT, Profile
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import adjoint_of
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.measure.direction import DirectionSweep
from lightning_gradwatch.recurrent.measure.sweep import Sweep, sweep
from lightning_gradwatch.recurrent.shape import Shape


@dataclass(frozen=True, slots=True)
class Window:
    """What an earlier call of a fused module was made of, and what it ended with: references to
    these tensors alone, without their graph.
    """

    shape: Shape
    input: Tensor
    given: tuple[Tensor | None, Tensor | None]
    ended: tuple[Tensor, Tensor | None]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, call: RecurrentCall) -> Window | None:
        """None where it could not be repeated: see :func:`obstacle`."""
        if obstacle(call) is not None or call.parts or call.changed() or call.finals_changed():
            return None
        given, ended = (_detached(call.h0), _detached(call.c0)), (call.h_n.detach(), _detached(call.c_n))
        return cls(call.shape, call.input.detach(), given, ended, _versions(call.input, *given, *ended))

    def carried_to(self, call: RecurrentCall) -> list[int]:
        """The sequences of a later call that begin with what this one ended with."""
        begun = (call.h0, call.c0)
        if call.shape != self.shape or self.versions != _versions(self.input, *self.given, *self.ended):
            return []
        same: Tensor | None = None
        for end, begin in zip(self.ended, begun, strict=True):
            if (end is None) != (begin is None) or (begin is not None and end is not None and begin.shape != end.shape):
                return []
            if begin is not None and end is not None:
                equal = (begin.detach() == end).flatten(2).all(2).all(0)
                same = equal if same is None else same & equal
        return [] if same is None else torch.nonzero(same).flatten().tolist()

    def again(self, call: RecurrentCall, rows: list[int]) -> RecurrentCall:
        """These sequences of it, time-major, by the weights that ``call`` has."""
        time = self.input.transpose(0, 1) if self.shape.batch_first else self.input
        chosen = torch.tensor(rows, device=time.device)
        x = time[:, chosen]
        h0, c0 = (None if state is None else state[:, chosen] for state in self.given)
        past = RecurrentCall(
            call.module, 0, _time_major(self.shape), tuple(w.detach() for w in call.weights), x, h0, c0, x, x, None
        )
        output = x
        ends: list[tuple[Tensor, Tensor | None]] = []
        for layer in range(self.shape.num_layers):
            adjoint = adjoint_of(past, layer, 0)
            h_begin, c_begin = (None if state is None else state[layer] for state in (h0, c0))
            output, h, c = adjoint.run(output, *adjoint.initial_states(h_begin, c_begin, len(rows)))
            ends.append((h, c))
        h_n = torch.stack([h for h, _ in ends])
        c_n = torch.stack([c for _, c in ends if c is not None]) if self.shape.mode == "LSTM" else None
        return RecurrentCall(call.module, 0, past.shape, past.weights, x, h0, c0, output, h_n, c_n)


IN_A_LOOP = "it is a cell in a loop"
CALLED_AGAIN = "it is called several times a step"


def obstacle(call: RecurrentCall) -> str | None:
    """Why the window before such a call is not run again; None where it can be."""
    formats = {call.input.dtype, call.output.dtype, call.weights[0].dtype}
    against = (
        (call.has_lengths(), "its sequences end at different timesteps"),
        (call.input.dim() != 3, "its input has no batch dimension"),
        (call.shape.num_directions > 1, "it goes in both directions"),
        (bool(call.shape.dropout), "it has dropout between its layers"),
        (call.limit is not None, "it is clipped through time"),
        (len(formats) > 1 or not formats <= _PRECISE, "it is computed in half precision"),
        (call.doubt is not None, call.doubt),
    )
    return next((reason for applies, reason in against if applies), None)


_PRECISE = {torch.float32, torch.float64}


@torch.no_grad()
def shares_beyond(call: RecurrentCall, swept: Sweep, window: Window | None) -> list[float] | None:
    """Of each layer: Σ_t ‖∂L/∂s_t‖ over the window before, by Σ_t ‖∂L/∂s_t‖ over both windows, s
    being the whole state (h and c of an LSTM); median over the sequences that were carried over.

    L is the loss of the later window. The window before is run again, from the state that it began
    with and on its own inputs, by the weights that the later one has: had both been one window, no
    optimizer step would lie between them. What arrives at the state which was carried over goes
    back through it, by the module's own state alone.

    Returns:
        None where the later window does not go on from ``window``, or its sweep is not exact.
    """
    if window is None or swept.inexact_reason is not None:
        return None
    carried = set(window.carried_to(call))
    places = [place for place, row in enumerate(swept.layout.sequences) if row in carried]
    if not places:
        return None
    past = window.again(call, [swept.layout.sequences[place] for place in places])
    arriving = [one.at_beginning(places) for (one,) in swept.directions]
    past.h_n_gradient(torch.stack([h for h, _ in arriving]))
    if past.c_n is not None:
        past.c_n_gradient(torch.stack([c for _, c in arriving if c is not None]))
    earlier, lift = sweep(past, max_sequences=None, anchors=0), swept.anchors.lift
    pairs = zip(earlier.directions, swept.directions, strict=True)
    return [_share(_sum(before) / lift, _sum(now)[places]) for (before,), (now,) in pairs]


def with_share(measured: Sequence[Profile], shares: Sequence[float]) -> list[Profile]:
    """The profiles of a call's states with the share of their layer."""
    known = [one.state != INPUT and not math.isnan(shares[one.layer]) for one in measured]
    pairs = zip(measured, known, strict=True)
    return [replace(one, cut_share=shares[one.layer]) if is_known else one for one, is_known in pairs]


def without_share(measured: Sequence[Profile], why: str | None) -> list[Profile]:
    """Those whose state comes in without a graph with the reason why there is no share."""
    return [replace(one, cut_unknown=why) if one.truncated and one.state != INPUT else one for one in measured]


def _share(beyond: axes.Float[Tensor, " sequence"], within: axes.Float[Tensor, " sequence"]) -> float:
    shares = [b / (b + w) for b, w in zip(beyond.tolist(), within.tolist(), strict=True) if b + w > 0]
    return median(shares) if shares else float("nan")


def _sum(one: DirectionSweep) -> axes.Float[Tensor, " sequence"]:
    """Over time, of the norms of the whole loss's gradient."""
    whole = one.total[:, 0]
    return (whole if one.total_cell is None else torch.hypot(whole, one.total_cell[:, 0])).sum(0)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors if tensor is not None)


def _time_major(shape: Shape) -> Shape:
    return replace(shape, batch_first=False)
