"""Recurrences in tensor operations whose state is detached at every step: their parameters are used
again and again, each time on the value of what was made with the use before, and no gradient goes
from one to the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradwatch.recurrent.capture.severed import FEW, comes_from
from lightning_gradwatch.recurrent.graph.topology import Topology, kind_of
from lightning_gradwatch.recurrent.graph.uses import Uses, uses_of_parameters
from lightning_gradwatch.recurrent.graph.values import Values, operands

MOST_USES = 20_000
"""Uses of parameters that are looked at in all."""

DETACHED = "In one step it is used {count} times, each time on what was made with the use before, but detached."


@dataclass(frozen=True, slots=True)
class SeveredUses:
    """One recurrence.

    Args:
        leaf: a parameter that is used in it; ``count`` times.
    """

    leaf: Tensor
    count: int


@torch.no_grad()
def severed_uses(graph: Topology, states: Collection[int]) -> list[SeveredUses]:
    """Each once. It compares values: for one step.

    Args:
        graph: behind a loss.
        states: the places in it where states that are measured, or watched, were made.
    """
    values: Values | None = None
    found: list[SeveredUses] = []
    seen, left = set(states), MOST_USES
    for uses in uses_of_parameters(graph):
        left -= len(uses.ranks)
        if left < 0:
            break
        detached = _all_detached(graph, uses)
        if detached is not None:
            values = values or Values(graph)
            made = _made_before(graph, uses, detached, values)
            if made is not None and seen.isdisjoint(made):
                found.append(SeveredUses(uses.leaf, len(made) + 1))
            seen.update(made or ())
    return found


def _all_detached(graph: Topology, uses: Uses) -> list[Tensor] | None:
    """What a parameter is used on, of all uses but the first; None where one is not detached, or is
    what the one before was: a state that changes nothing yet says nothing.
    """
    order = sorted(uses.ranks, key=uses.ranks.__getitem__)
    if len(set(uses.ranks.values())) < max(FEW, len(order)):
        return None
    first = _detached(graph, order[0])
    detached: list[Tensor] = []
    for at in order[1:]:
        operand = _detached(graph, at)
        before = detached[-1] if detached else first
        if operand is None or (before is not None and comes_from(operand, before)):
            return None
        detached.append(operand)
    return detached


def _made_before(graph: Topology, uses: Uses, detached: list[Tensor], values: Values) -> list[int] | None:
    """Of each use but the first the place at which its operand was made, before it was detached;
    None where one was not made with the use before alone.
    """
    hang_on = _made_with_one(graph, uses.ranks)
    made: list[int] = []
    for rank, operand in enumerate(detached, 1):
        at = _place_of(graph, operand, hang_on.get(rank, ()), made, values)
        if at is None:
            return None
        made.append(at)
    return made


def _detached(graph: Topology, at: int) -> Tensor | None:
    """The other factor of a product with a parameter, if it is without a graph, in whole or in a
    part that was joined to others.
    """
    factors = operands(graph.nodes[at])
    others = [one for one in factors if one is not None and (one.made_by is None or _is_joined(one.made_by))]
    return others[0].value if len(others) == 1 else None


def _is_joined(node: Node) -> bool:
    """Whether it is a concatenation of parts of which one is without a graph."""
    return kind_of(node) == "Cat" and any(child is None for child, _ in node.next_functions)


def _made_with_one(graph: Topology, ranks: Mapping[int, int]) -> dict[int, list[int]]:
    """Rank → the places that hang on the use of this rank and on no other, the last made first."""
    lowest, highest = [0] * len(graph.nodes), [0] * len(graph.nodes)
    places: dict[int, list[int]] = {}
    for at, children in enumerate(graph.children):
        below = [child for child, _ in children if highest[child]]
        own = [ranks[at]] if at in ranks else []
        lowest[at] = min([*own, *(lowest[child] for child in below)], default=0)
        highest[at] = max([*own, *(highest[child] for child in below)], default=0)
        if highest[at] and lowest[at] == highest[at]:
            places.setdefault(highest[at], []).insert(0, at)
    return places


def _place_of(
    graph: Topology, operand: Tensor, places: Collection[int], before: list[int], values: Values
) -> int | None:
    """Where the value of an operand was made; those of the kind that it was of before are asked
    first.
    """
    kind = graph.kinds[before[-1]] if before else ""
    for at in sorted(places, key=lambda place: graph.kinds[place] != kind):
        made = values.of(graph.nodes[at])
        if made is not None and any(comes_from(part, made) for part in _parts(operand, made)):
            return at
    return None


def _parts(whole: Tensor, like: Tensor) -> Iterator[Tensor]:
    """A tensor, or its first and its last columns where it is wider than another one."""
    if whole.dim() != like.dim() or not whole.dim() or whole.shape[:-1] != like.shape[:-1]:
        return
    width = like.shape[-1]
    if whole.shape[-1] == width:
        yield whole
    elif whole.shape[-1] > width > 0:
        yield from (whole[..., :width], whole[..., -width:])
