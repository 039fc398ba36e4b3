"""The axes of tensors: the names that annotations, docstrings and the documentation use.

``axes.Float[Tensor, "time sequence state"]`` is a tensor of floating-point numbers with these axes,
``Inexact`` one of floating-point or complex ones, ``Shaped`` one of any;
``#time`` may be 1 instead.
Within one call a name stands for one length. The tests check every annotation as it is called;
elsewhere annotations are text that nobody reads, and jaxtyping need not be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Inexact as Inexact
    from jaxtyping import Int as Int
    from jaxtyping import Shaped as Shaped

VOCABULARY = {
    "time": "timesteps; in a direction's own order or as the caller counts them, as the text says",
    "whole": "all timesteps, where ``time`` is some of them",
    "batch": "all sequences of a batch, in the caller's order",
    "sequence": "those of them that are measured",
    "ending": "those of them that end at one timestep",
    "stream": "gradients that flow back side by side: the whole loss's first, then one of each anchor",
    "anchor": "timesteps whose loss is followed back",
    "curve": "lagged gradients, of an anchor and a sequence each",
    "lag": "timesteps back from an anchor, in the direction's own order",
    "cascade": "layers times directions, as PyTorch orders h0, c0, h_n and c_n",
    "gate": "the gates of a kind, as PyTorch orders them",
    "gated": "gates times hidden units: rows of W_ih and W_hh",
    "input": "width of a layer's input",
    "hidden": "hidden units: width of a gate and of c",
    "state": "width of h: the hidden units, or fewer with ``proj_size``",
    "channel": "channels of a scan's state, all its other dimensions in one; of decays, those that have one of their own",
    "width": "any of these widths",
    "row": "timesteps and sequences together, those that there are",
    "some": "some of what lies there, as the text says",
    "part": "what is added up to a pre-activation: input, state, bias",
}
"""What an axis is called → what lies along it. ``...`` stands for any axes, or none."""


def __getattr__(name: str) -> Any:
    """Whoever evaluates an annotation has jaxtyping."""
    import jaxtyping

    return getattr(jaxtyping, name)
