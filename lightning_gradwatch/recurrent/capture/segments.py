"""A tap's states where the gradient is cut now and then, as in truncated
backpropagation through time by hand.
"""

from __future__ import annotations

from dataclasses import replace

from lightning_gradwatch.recurrent.graph.latest import Latest
from lightning_gradwatch.recurrent.loop import Loop


def segments(loop: Loop) -> list[Loop]:
    """The sequences within which each state hangs on one before in the graph;
    ``[loop]`` where that is so throughout.
    """
    edges = [(state.edge.node, state.edge.output_nr) for state in loop.h]
    latest = Latest([(edge,) for edge in edges])
    starts = [t for t, edge in enumerate(edges) if not t or latest.below(edge) < 0]
    if len(starts) == 1:
        return [loop]
    return [_piece(loop, number, start, end) for number, (start, end) in enumerate(_pairs(starts, len(edges)))]


def _pairs(starts: list[int], end: int) -> list[tuple[int, int]]:
    return list(zip(starts, [*starts[1:], end], strict=True))


def _piece(loop: Loop, number: int, start: int, end: int) -> Loop:
    piece = Loop(loop.module, loop.index + number, loop.kind, batch_dim=loop.batch_dim, steps=loop.steps[start:end])
    if start:  # whatever was done to it on the way
        piece.steps[0] = replace(piece.steps[0], given=(("h", loop.h[start - 1].tensor.detach()),))
    return piece
