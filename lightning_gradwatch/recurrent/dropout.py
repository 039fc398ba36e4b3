"""The dropout masks between the layers of a fused module, drawn again from the
generator state of its forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.layout import Layout


def redraw_masks(call: RecurrentCall, layout: Layout) -> list[Tensor]:
    """One mask below each layer but the first, already divided by the
    share that is kept; on the CPU.

    PyTorch drops from a layer's whole output, in order of layers, time-major whatever the caller's
    layout. The global generator is put back as it was.
    """
    shape = call.shape
    if call.rng_state is None or not shape.dropout:
        return []
    width = shape.state_size * shape.num_directions
    ones = torch.ones(layout.dropout_shape(width), dtype=call.output.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(call.rng_state)
        return [torch.dropout(ones, shape.dropout, True) for _ in range(shape.num_layers - 1)]


def missing_masks(call: RecurrentCall) -> str | None:
    """Why the masks cannot be had again; None if they can, or if there are none."""
    if not call.shape.dropout or call.rng_state is not None:
        return None
    return f"the dropout between layers on {call.output.device.type} cannot be drawn again"
