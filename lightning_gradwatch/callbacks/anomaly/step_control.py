"""Skip an optimizer step, or stop the training: the one place that does either,
whichever callback decides it.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.trainer.compat import Trainer
from lightning_gradwatch.trainer.mixed_precision import active_scaler, unscale_once

_skipped: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
"""Optimizer → Lightning's ``global_step`` of the last step of it that was skipped: by it one
callback knows that another has acted.
"""


def skip_step(trainer: Trainer, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Have the optimizer step that comes change nothing: neither weights nor the optimizer's state.

    Args:
        parameters: those of the optimizer that have a gradient.
    """
    scaler = active_scaler(trainer)
    if scaler is not None:
        unscale_once(scaler, optimizer)  # the scaler raises at a step whose gradients it never saw
    for parameter in parameters:
        parameter.grad = None  # zeros would still move weights by momentum and weight decay
    _skipped[optimizer] = trainer.global_step


def is_skipped(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether the step that comes has been skipped already, and whoever did it has said so."""
    return _skipped.get(optimizer) == trainer.global_step


def stop_training(trainer: Trainer) -> None:
    """End the training after the step at hand."""
    trainer.should_stop = True
