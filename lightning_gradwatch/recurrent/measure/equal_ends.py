"""Runs of equal inputs at both ends of a sequence, as padding leaves them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.layout import FORWARD, Layout

Runs = tuple[tuple[int, ...], tuple[int, ...]]
"""Of each sequence, how many timesteps at its begin have one and the same input, and how many at
its end; 0 where none repeats.
"""

NONE: Runs = ((), ())
"""Not known."""


@torch.no_grad()
def of_call(call: RecurrentCall, layout: Layout, chunk: int) -> Runs:
    """Those of the sequences of a fused call that are measured."""
    x = call.input.detach()
    parts = [
        _repeats(layout.read(x, FORWARD, start, min(start + chunk + 1, layout.timesteps)))
        for start in range(0, max(layout.timesteps - 1, 1), chunk)
    ]
    return _runs(torch.cat(parts), layout.lengths.tolist())


@torch.no_grad()
def of_steps(given: Sequence[Tensor | None], sequences: Sequence[int], lengths: Sequence[int]) -> Runs:
    """Those of a loop, from the inputs ``given`` to its steps; not known where there
    are none or their shape changes.
    """
    inputs = [x for x in given if x is not None]
    if not inputs or len(inputs) != len(given) or len({x.shape for x in inputs}) != 1 or inputs[0].dim() < 2:
        return NONE
    chosen = torch.tensor(sequences, device=inputs[0].device)
    rows = [x.detach().flatten(1)[chosen] for x in inputs]
    pairs = [_repeats(torch.stack([rows[t], rows[t + 1]])) for t in range(len(rows) - 1)]
    return _runs(torch.cat(pairs), lengths) if pairs else NONE


def _repeats(x: Tensor) -> axes.Bool[Tensor, "some sequence"]:
    """Whether each timestep but the first has the very input of the one before."""
    return (x[1:] == x[:-1]).flatten(2).all(-1).cpu()


def _runs(repeats: axes.Bool[Tensor, "time sequence"], lengths: Sequence[int]) -> Runs:
    first: list[int] = []
    last: list[int] = []
    for j, length in enumerate(lengths):
        row = repeats[: max(length - 1, 0), j].int()
        begin, end = int(row.cumprod(0).sum()), int(row.flip(0).cumprod(0).sum())
        constant = begin == len(row)  # the same input from begin to end is no padding
        first.append(0 if constant or not begin else begin + 1)
        last.append(0 if constant or not end else end + 1)
    return tuple(first), tuple(last)
