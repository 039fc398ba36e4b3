"""What a tensor was made of, a few operations up the graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_gradwatch.recurrent.graph.ways_up import above

Take = Callable[[Tensor, int], Tensor]
TAKES: dict[str, Take] = {
    "index": lambda stack, part: stack[part],
    "from the end": lambda stack, part: stack[part - 3],
    "unbound": lambda stack, part: stack.unbind(0)[part],
    "and computed with": lambda stack, part: 0.5 * stack[part] + 1.0,
}


def made_of(tensor: Tensor, *parts: Tensor) -> list[int]:
    """Which of the parts."""
    numbers = {part.grad_fn._sequence_nr(): at for at, part in enumerate(parts) if part.grad_fn is not None}
    return above((tensor.grad_fn, tensor.output_nr), numbers)


def three() -> list[Tensor]:
    return [torch.randn(2, 4, requires_grad=True) * factor for factor in (1.0, 2.0, 3.0)]


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("take", TAKES)
def test_a_part_of_a_stack_is_made_of_that_part_alone(take: str, part: int) -> None:
    """However it is taken, and whatever is computed with it."""
    parts = three()
    assert made_of(TAKES[take](torch.stack(parts), part), *parts) == [part]


@pytest.mark.parametrize("dim", [1, -1])
def test_stacked_along_another_axis(dim: int) -> None:
    """Too, and by its name from the end."""
    parts = three()
    assert made_of(torch.stack(parts, dim).select(dim, 1), *parts) == [1]


def test_a_part_across_the_stack_is_made_of_all() -> None:
    """A sequence of a batch has something of each."""
    parts = three()
    assert sorted(made_of(torch.stack(parts)[:, 0], *parts)) == [0, 1, 2]


def test_a_part_that_hangs_on_nothing() -> None:
    """A constant in the stack is made of none of the others."""
    parts = three()
    assert made_of(torch.stack([torch.zeros(2, 4), *parts])[0] + torch.ones(2, 4), *parts) == []


def test_a_stack_that_is_looked_for_itself() -> None:
    """A module may have returned it."""
    stack = torch.stack(three())
    assert made_of(stack[1], stack) == [0]
