"""Where a loop's batches and steps begin and end: nobody says so, but hooks hear it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.capture.compiled import is_compiling
from lightning_gradwatch.recurrent.pause import is_paused
from lightning_gradwatch.step_hooks import keep_step_hooks, once_a_step

MOST_FORWARDS = 32
"""Passes of the whole model with no backward pass after them: so many are kept. More are no
training, as where a validation forgets ``no_grad``, and would fill the memory.
"""


class ForwardHook:
    """Tells of each forward pass of the model that could be trained on. A copy of the model takes
    one along that tells nobody.

    Args:
        tell: is given whether the model is in training mode, and whether what it was given is
            data alone, and no state of an earlier pass.
    """

    def __init__(self, tell: Callable[[bool, bool], None] | None = None) -> None:
        self._tell = tell

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if is_compiling() or self._tell is None or not torch.is_grad_enabled() or is_paused():
            return
        self._tell(module.training, not any(tensor.requires_grad for tensor in _tensors((args, kwargs))))

    def __reduce__(self) -> tuple[Any, ...]:
        return ForwardHook, ()


class Forwards:
    """The forward passes of the model since the last backward pass."""

    def __init__(self) -> None:
        self._count = 0
        self._trains = False

    def clear(self) -> None:
        """A backward pass has come, or a step."""
        self._count, self._trains = 0, False

    def are_too_many(self) -> bool:
        """Whether no backward pass is to be expected any more."""
        return self._count > MOST_FORWARDS

    def add(self, training: bool, fresh: bool) -> bool:
        """Another one. Returns whether what came before it is left over from an evaluation.

        Args:
            training: the model's mode.
            fresh: it was given data alone.
        """
        left_over = training and not self._trains and self._count > 0
        self._count = fresh + (0 if left_over else self._count)
        self._trains |= training
        return left_over


def hear_steps(
    optimizers: Sequence[Optimizer],
    model: nn.Module,
    before: Callable[[Optimizer], None],
    after: Callable[[Optimizer], None],
) -> list[RemovableHandle]:
    """Have the steps of these optimizers heard; where none is given, of each that holds one of the
    model's parameters.
    """

    @once_a_step
    def pre(optimizer: Optimizer, *_: Any) -> None:
        if optimizers or _holds(optimizer, model):
            before(optimizer)

    @once_a_step
    def post(optimizer: Optimizer, *_: Any) -> None:
        if optimizers or _holds(optimizer, model):
            after(optimizer)

    keep_step_hooks(optimizers)
    if not optimizers:
        return [register_optimizer_step_pre_hook(pre), register_optimizer_step_post_hook(post)]
    handles: list[RemovableHandle] = []
    for one in optimizers:
        handles += [one.register_step_pre_hook(pre), one.register_step_post_hook(post)]
    return handles


def gradients(model: nn.Module) -> list[tuple[int, int] | None]:
    """What tells whether a backward pass has added to any parameter's gradient: no host sync."""
    return [None if (g := p.grad) is None else (id(g), g._version) for p in model.parameters()]


def _holds(optimizer: Optimizer, model: nn.Module) -> bool:
    parameters = set(map(id, model.parameters()))
    return any(id(parameter) in parameters for group in optimizer.param_groups for parameter in group["params"])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in cast("Mapping[Any, Any]", value).values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in cast("Sequence[Any]", value):
            yield from _tensors(item)
