"""Modules whose calls are the timesteps of one sequence although no gradient
flows from one to the one before.

A module may well be called several times for good reasons: an encoder for several sequences, both
directions by hand, one call for each element of a batch. So it is called severed on evidence alone:
its state is that of an earlier call, detached; or its calls take the timesteps of one tensor, each
beginning anew. Where each call takes one sequence alone, the slices may be sequences: that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.graph.edges import Edge, edge_of
from lightning_gradwatch.recurrent.graph.latest import Latest
from lightning_gradwatch.recurrent.graph.slices import have_common_origin
from lightning_gradwatch.recurrent.initial_state import is_handed_over
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.scan import Scan

FEW = 3
"""A module called fewer times than this in a step may well have no time to flow through."""

LOOK_BACK = 4
"""A state may come from so many calls before: two loops over one cell may take turns."""

FEWEST_UNITS = 4
"""Fewer numbers than this may well lie on a line by chance."""

CONTEXT = (
    "Each of its {count} calls takes one timestep and the same state, another for each sequence: it works as a gated layer over "
    "what it is given, and nothing is carried through time."
)

ALONE = (
    "Each of its {count} calls takes one timestep of one sequence, a slice of one tensor, and begins anew, {what}: if the slices are the "
    "timesteps of a sequence, nothing is carried through time."
)
"""With one sequence alone the slices may as well be the sequences of a batch."""

SEVERAL_ROWS = 2
"""Sequences, taken at once, whose slices can be nothing but timesteps."""

STRAIGHT = 1 - 1e-6
"""The squared correlation of two rows of which one is the other, shifted,
scaled, or with some units dropped.
"""


@dataclass(frozen=True, slots=True)
class How:
    """In a sentence, how the state of a module or tap is severed.

    Args:
        is_note: it may well be meant so.
        remedy: where it is not that of all others.
    """

    words: str
    is_note: bool = False
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Use:
    """One call of a module, or one state marked by a tap.

    Args:
        input: None of a tap.
        given, made: the states that went in and came out.
        hangs_on: places in the graph through which it may hang on an earlier one.
        edges: where its results were made.
    """

    timesteps: int
    input: Tensor | None
    given: tuple[Tensor, ...]
    made: tuple[Tensor, ...]
    hangs_on: tuple[Edge | None, ...]
    edges: tuple[Edge | None, ...]


@torch.no_grad()
def severed(calls: Sequence[RecurrentCall | Loop | Scan]) -> dict[str, How]:
    """Module or tap → how its state is severed at every step. It
    compares values: for sampled steps.
    """
    by_module: dict[str, list[RecurrentCall | Loop]] = {}
    for call in calls:
        if not isinstance(call, Scan):  # it goes on from timestep to timestep by itself
            by_module.setdefault(call.module, []).append(call)
    ways = {name: _how(of_module) for name, of_module in by_module.items()}
    return {name: how for name, how in ways.items() if how is not None}


def _how(calls: Sequence[RecurrentCall | Loop]) -> How | None:
    uses = [use for call in calls for use in uses_of(call)]
    if len(uses) < FEW or any(use.timesteps > 1 for use in uses):
        return None
    latest = Latest([use.edges for use in uses])
    is_tap = all(use.input is None for use in uses)
    hang = latest.below if is_tap else latest
    if any(hang(edge) >= 0 for use in uses for edge in use.hangs_on):
        return None
    if is_tap:
        return How(
            f"None of its {len(uses)} states hangs on the one before in the graph: each was detached, or begun anew."
        )
    if any(is_handed_over(state) for use in uses for state in use.given):
        return None
    if _come_detached(uses):
        return How(
            f"In each of its {len(uses)} calls the state that comes in is that of an earlier call, but detached."
        )
    if _begin_alike(uses) and have_common_origin([use.input for use in uses if use.input is not None]):
        if min(map(_sequences, uses)) < SEVERAL_ROWS:
            return How(ALONE.format(count=len(uses), what=_with_what(uses)), is_note=True)
        if any(differs_by_row(state) for state in uses[-1].given):
            return How(CONTEXT.format(count=len(uses)), is_note=True)
        return How(f"Each of its {len(uses)} calls takes one timestep and begins anew, {_with_what(uses)}.")
    return None


def uses_of(call: RecurrentCall | Loop) -> list[Use]:
    """Its calls, or its states where they are tapped."""
    if isinstance(call, RecurrentCall):
        given = tuple(state for state in (call.h0, call.c0) if state is not None)
        made = tuple(state for state in (call.h_n, call.c_n) if state is not None)
        hangs_on = (call.edges.input, *call.edges.given)
        return [Use(call.timesteps(), call.input, given, made, hangs_on, call.edges.made)]
    if call.kind == "tap":
        edges = [(state.edge.node, state.edge.output_nr) for state in call.h]
        return [Use(1, None, (), (s.tensor,), (edge,), (edge,)) for s, edge in zip(call.h, edges, strict=True)]
    first = call.steps[0]
    x, given, states = first.x, tuple(state for _, state in first.given), first.states
    edges = tuple((state.edge.node, state.edge.output_nr) for state in states)
    hangs_on = (edge_of(x), *map(edge_of, given))
    return [Use(len(call.steps), x, given, tuple(state.tensor for state in states), hangs_on, edges)]


def _come_detached(uses: Sequence[Use]) -> bool:
    """Whether most calls were given an earlier one's state."""
    count = sum(
        any(comes_from(use.given[0], before.made[0]) for before in uses[max(0, place - LOOK_BACK) : place])
        for place, use in enumerate(uses)
        if use.given
    )
    return count >= 2 and 2 * count >= len(uses) - 1


def comes_from(state: Tensor, before: Tensor) -> bool:
    """Whether the values of a state are those of an earlier one: itself, or masked, scaled,
    normalised, or with units dropped out.

    What is not 0 of most of its rows must lie on a line over the same units of the earlier state.
    """
    if state.shape != before.shape or not state.is_floating_point():
        return False
    rows, earlier = (s.detach().double().reshape(-1, s.shape[-1] if s.dim() else 1) for s in (state, before))
    kept = (rows != 0).double()
    count = kept.sum(-1)
    there = count > 0
    if not bool(there.any()):
        return False
    means = [(r * kept).sum(-1, keepdim=True) / count[:, None].clamp_min(1) for r in (rows, earlier)]
    a, b = ((r - mean) * kept for r, mean in zip((rows, earlier), means, strict=True))
    squares = a.square().sum(-1) * b.square().sum(-1)
    straight = ((a * b).sum(-1).square() > STRAIGHT * squares) & (squares > 0) & (count >= FEWEST_UNITS)
    same = (torch.where(kept > 0, rows - earlier, 0.0) == 0).all(-1)
    return bool(2 * ((straight | same) & there).sum() > there.sum())


def _begin_alike(uses: Sequence[Use]) -> bool:
    """Whether all calls after the first were given the same states.
    None at all is as good as zeros.
    """
    return all(_starts_as(use, uses[1]) for use in uses[2:])


def _starts_as(use: Use, other: Use) -> bool:
    """Whether two calls were given the same states."""
    one, two = (() if not any(bool(s.any()) for s in u.given) else u.given for u in (use, other))
    return len(one) == len(two) and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two, strict=True))


def differs_by_row(state: Tensor) -> bool:
    """Whether a state was made of data: an initial state, zeros or trained, is one for all
    sequences.
    """
    rows = state.detach().reshape(-1, state.shape[-1] if state.dim() else 1)
    return bool((rows != rows[:1]).any())


def _sequences(use: Use) -> int:
    state = use.made[0]
    return state.shape[-2] if state.dim() > 1 else 1


def _with_what(uses: Sequence[Use]) -> str:
    what = _state_of(uses[-1])
    return f"with {what}" if _starts_as(uses[0], uses[1]) else f"all but the first with {what}"


def _state_of(use: Use) -> str:
    if not use.given:
        return "no state given"
    return "the same state" if any(bool(state.any()) for state in use.given) else "a state of zeros"
