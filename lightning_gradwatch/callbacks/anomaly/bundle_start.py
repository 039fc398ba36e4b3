"""What of a training step is gone when an anomaly in it is found, kept from the step's start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.runlog.randomness import random_states
from lightning_gradwatch.trainer.attributes import attributes, copied, holds_tensors, nested
from lightning_gradwatch.trainer.compat import LightningModule, Trainer


@dataclass(frozen=True)
class Start:
    """A step as it was before its forward.

    Args:
        batch: a copy, on its device; what is neither a tensor nor a usual container is a reference.
        random: the states of the random generators.
        buffers: copies by name: a forward changes them (running means, spectral norms).
        attributes: by module name, tensors that modules keep in plain attributes, as a hidden state
            that is carried from batch to batch; ``numbers`` likewise.
        gradients: copies by parameter name, of the micro-batches before this one.
        weights: parameter name → how often it had been changed in place.
        frozen: parameters that need no gradient; a step of several optimizers takes turns.
        parameters, optimizers: copies, where one batch takes several optimizer steps; None
            elsewhere, where the weights are still as they were when an anomaly is found.
        counts: Lightning's counters.
    """

    batch: Any
    random: dict[str, Any]
    buffers: dict[str, Tensor]
    attributes: dict[str, dict[str, Any]]
    numbers: dict[str, dict[str, Any]]
    gradients: dict[str, Tensor]
    weights: dict[str, int]
    frozen: list[str]
    parameters: dict[str, Tensor] | None
    optimizers: list[dict[str, Any]] | None
    counts: dict[str, Any]

    @classmethod
    def of(cls, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> Start:
        """The present state. Reading it draws no random number and changes nothing."""
        named = dict(module.named_parameters())
        steps_within = not module.automatic_optimization or any(
            isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers
        )
        # Gradients that the step's own zero_grad is about to clear need no copy.
        accumulates = not module.automatic_optimization or batch_idx % trainer.accumulate_grad_batches != 0
        return cls(
            batch=nested(batch),
            random=random_states(trainer.strategy.root_device),
            buffers={name: copied(buffer) for name, buffer in module.named_buffers()},
            attributes=attributes(module, holds_tensors),
            numbers=attributes(module, _is_number),
            gradients={n: copied(p.grad) for n, p in named.items() if accumulates and p.grad is not None},
            weights={name: parameter._version for name, parameter in named.items()},
            frozen=[name for name, parameter in named.items() if not parameter.requires_grad],
            parameters={name: copied(parameter) for name, parameter in named.items()} if steps_within else None,
            optimizers=[nested(o.state_dict()) for o in trainer.optimizers] if steps_within else None,
            counts={
                "batch_idx": batch_idx,
                "epoch": trainer.current_epoch,
                "global_step": trainer.global_step,
                "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,  # pyright: ignore[reportPrivateUsage]
                "is_last_batch": trainer.fit_loop.epoch_loop.batch_progress.is_last_batch,
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
            },
        )

    def changed_numbers(self, since: Start) -> dict[str, dict[str, Any]]:
        """The attributes that the training itself has changed: the others
        are the module's configuration.
        """
        return {
            name: {key: n for key, n in values.items() if since.numbers.get(name, {}).get(key) != n}
            for name, values in self.numbers.items()
        }

    def changed(self, module: LightningModule) -> list[str]:
        """Parameters that the step has changed in place before any optimizer could, so that
        their values at its start are lost.
        """
        if self.parameters is not None:
            return []
        return [name for name, p in module.named_parameters() if p._version != self.weights.get(name, p._version)]


def _is_number(value: Any) -> bool:
    return type(value) in (bool, int, float)
