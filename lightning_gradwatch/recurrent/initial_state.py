"""What is to be said of the state that a recurrence begins with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def is_handed_over(state: Tensor | None) -> bool:
    """Whether a state is a leaf that asks for a gradient and is no parameter: somebody may
    hand its gradient back by hand.
    """
    return state is not None and state.is_leaf and state.requires_grad and not isinstance(state, nn.Parameter)


def is_truncated(state: Tensor | None) -> bool:
    """Whether an initial state says something and yet comes without a graph: then what made it
    is out of the gradient's reach.
    """
    return state is not None and not state.requires_grad and bool(state.detach().any())


def is_cell_cut(given: Iterable[tuple[Tensor | None, Tensor | None]]) -> bool:
    """Whether most timesteps after the first were given an h with a graph, and a c without one.

    Args:
        given: h and c of each of these; None is what the timestep before returned.
    """
    cut = [c is not None and not c.requires_grad and (h is None or h.requires_grad) for h, c in given]
    return 2 * sum(cut) > len(cut)
