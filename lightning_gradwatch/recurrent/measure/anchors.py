"""The anchors of a lagged profile: timesteps τ whose direct loss L_τ
is followed back through time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import computed_in
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.layout import DIRECTIONS, FORWARD, REVERSE, Layout


@dataclass(frozen=True, slots=True)
class Anchors:
    """Timesteps as the caller counts them, ``(anchor, sequence)``, latest first,
    −1 where a sequence has fewer.

    ``scale`` has the same shape: 1/‖∂L_τ‖ of all that enters at τ. A sweep is linear, so each
    anchor's may start at norm 1, whatever the size of the loss; the profile divides by the norm at
    lag 0 anyhow. The whole loss's is multiplied by ``lift``, a power of two, for the sweep, and its
    norms are divided by it again. ``smallest`` is the smallest ‖∂L_τ‖.
    """

    timestep: axes.Int[Tensor, "anchor sequence"]
    scale: axes.Float[Tensor, "anchor sequence"]
    lift: float = 1.0
    smallest: float = math.inf

    def __len__(self) -> int:
        return len(self.timestep)

    def begun(self, start: int) -> int:
        """How many anchors lie at ``start`` or later in any sequence: going back in time, only
        these carry a gradient so far.
        """
        return int((self.timestep >= start).any(1).sum()) if len(self) else 0

    def beginnings(self) -> list[int]:
        """The latest timestep of each anchor, where going back in time its gradient begins."""
        return [int(row.max()) for row in self.timestep if int(row.max()) >= 0]


def direct_norms(call: RecurrentCall, layout: Layout, chunk: int) -> axes.Float[Tensor, "time sequence"]:
    """‖what the loss sends directly to each timestep‖: ``(time, sequence)`` float64 on the
    CPU, states' last steps included.
    """
    squares = torch.zeros(layout.timesteps, len(layout.sequences), dtype=torch.float64)
    output = call.output_gradient.value()
    if output is not None:
        for start in range(0, layout.timesteps, chunk):
            stop = min(start + chunk, layout.timesteps)
            part = layout.read(output, FORWARD, start, stop)
            squares[start:stop] = norm(part).cpu() ** 2
    for slot in (call.h_n_gradient, call.c_n_gradient):
        gradient = slot.value()
        if gradient is None:
            continue
        for index in range(len(gradient)):
            direction = index % call.shape.num_directions
            state = layout.read_state(gradient, index)
            assert state is not None
            squares[last_timestep(layout, direction), torch.arange(len(layout.sequences))] += norm(state).cpu() ** 2
    return squares.sqrt()


def norm(tensor: axes.Float[Tensor, "*axes width"]) -> axes.Float[Tensor, " *axes"]:
    """L2 norm over the last dimension, accumulated in float64: squares of vanished
    gradients underflow in float32.
    """
    dtype = torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    if tensor.dtype != dtype and tensor.device.type == "cpu" and tensor.numel() > SLICE and tensor.dim() > 1:
        norms = in_slices(tensor, dtype)
    else:
        norms = torch.linalg.vector_norm(tensor, dim=-1, dtype=dtype)
    if tensor.dtype != dtype or bool(norms.isfinite().all()):
        return norms
    # In the widest dtype itself, squares of finite numbers may overflow.
    largest = tensor.abs().amax(-1)
    scaled = torch.linalg.vector_norm(tensor / largest[..., None], dim=-1) * largest
    return torch.where(norms.isfinite() | ~largest.isfinite(), norms, scaled)


SLICE = 2**16
"""Numbers that are copied to float64 at a time on a CPU: a copy of all would leave its cache."""


def in_slices(tensor: axes.Float[Tensor, "*axes width"], dtype: torch.dtype) -> axes.Float[Tensor, " *axes"]:
    """The norms, some of the first axis at a time."""
    some = max(SLICE * len(tensor) // tensor.numel(), 1)
    return torch.cat([torch.linalg.vector_norm(part, dim=-1, dtype=dtype) for part in tensor.split(some)])


def last_timestep(layout: Layout, direction: int) -> axes.Int[Tensor, " sequence"]:
    """The timestep at which each sequence's final state stands: its
    last one forwards, 0 in reverse.
    """
    return layout.lengths - 1 if direction == FORWARD else torch.zeros_like(layout.lengths)


def choose_anchors(call: RecurrentCall, layout: Layout, count: int, chunk: int) -> Anchors:
    """Of each sequence the last timestep that the loss reaches directly, and some of those before.

    Up to ``count`` are spread evenly over the timesteps that it reaches, and the sequences take
    turns with them: one each besides the last, as long as there are enough sequences. In a
    bidirectional module each takes the first as well, since it is the last of the reverse
    direction.
    """
    norms = direct_norms(call, layout, chunk)
    dtype = computed_in(call)
    precise = norms >= smallest_normal(call)
    both = call.shape.num_directions == len(DIRECTIONS)
    count = max(count, 2) if both and count else count
    sequences = len(layout.sequences)
    chosen: list[list[int]] = []
    for j in range(sequences):
        reached = torch.nonzero(precise[:, j] if bool(precise[:, j].any()) else norms[:, j]).flatten().tolist()
        latest_first = [reached[rank] for rank in reversed(spread(len(reached), count, both))]
        chosen.append(by_turns(latest_first, j, sequences, both))
    timestep = torch.full((max(map(len, chosen), default=0), sequences), -1, dtype=torch.long)
    for j, steps in enumerate(chosen):
        timestep[: len(steps), j] = torch.tensor(steps, dtype=torch.long)
    sizes = norms.gather(0, timestep.clamp_min(0)) if len(norms) else torch.ones_like(timestep, dtype=norms.dtype)
    scale = torch.where(sizes.isfinite(), 1 / sizes.clamp_min(torch.finfo(dtype).tiny), 1.0)
    largest = float(norms[norms.isfinite()].max()) if norms.numel() and bool(norms.isfinite().any()) else 0.0
    lift = 1.0 if call.limit is not None else lift_of(largest, dtype)
    there = sizes[timestep >= 0]
    return Anchors(timestep, scale, lift, float(there.min()) if len(there) else math.inf)


def by_turns(latest_first: list[int], sequence: int, sequences: int, both_ends: bool) -> list[int]:
    """Those that one of ``sequences`` takes of the timesteps spread over it."""
    last = len(latest_first) - 1 if both_ends else len(latest_first)
    turns = max(min(sequences, last - 1), 1)
    return [step for i, step in enumerate(latest_first) if i in (0, last) or i % turns == (sequence + 1) % turns]


LOW = 2.0**-30
"""Gradients under this are lifted to it for a sweep: float32 holds nothing under 1e-45, and they
are to fade by 1e-29 at least.
"""


def lift_of(largest: float, dtype: torch.dtype) -> float:
    """The power of two by which gradients are multiplied of which ``largest`` is the largest norm;
    1 where they are large enough.
    """
    if not 0 < largest < LOW or torch.finfo(dtype).bits < 32:
        return 1.0
    return min(
        2.0 ** -math.floor(math.log2(largest) - math.log2(LOW)), 2.0**1000 if dtype == torch.float64 else 2.0**126
    )


def smallest_normal(call: RecurrentCall) -> float:
    """Under this, the number format of the gradients that arrived holds fewer and fewer digits."""
    arrived = (slot.value() for slot in call.slots())
    return max((torch.finfo(gradient.dtype).tiny for gradient in arrived if gradient is not None), default=0.0)


def spread(available: int, count: int, both_ends: bool) -> list[int]:
    """Ranks in ``range(available)``, ascending, each once."""
    if not available:
        return []
    if both_ends:
        ranks = {round(i * (available - 1) / max(count - 1, 1)) for i in range(count)}
    else:
        ranks = {-(-(i + 1) * available // count) - 1 for i in range(count)}
    return sorted(ranks)


def lags(timestep: int, length: int, direction: int) -> int:
    """How many lags an anchor has, lag 0 included: steps back in the direction's own order."""
    return length - timestep if direction == REVERSE else timestep + 1


def too_small(normal: float) -> str:
    """The reason why gradients under the smallest normal number of their format are not exact."""
    return f"gradients are so small (under {normal:.2g}) that their number format no longer holds them precisely"
