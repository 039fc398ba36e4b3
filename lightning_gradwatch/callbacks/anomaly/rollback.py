"""The last good states of a training, kept in memory, and the way back to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_gradwatch.clip import ClipPolicy, TensorPolicy
from lightning_gradwatch.recurrent.measure.gradient_norm import local
from lightning_gradwatch.trainer.attributes import attributes, holds_any, may_carry, nested
from lightning_gradwatch.trainer.compat import LightningModule, Trainer
from lightning_gradwatch.trainer.mixed_precision import active_scaler


@runtime_checkable
class HasPolicies(Protocol):
    """A callback whose policies hold a state that is to be put back with
    the weights: AdaptiveClip is one.
    """

    def policies_in_use(self) -> list[list[ClipPolicy | TensorPolicy]]:
        """Of each optimizer the policies that hold a state of this fit."""
        ...


@dataclass(frozen=True)
class State:
    """A training's state after ``step`` optimizer steps, copied to the CPU;
    attributes stay on their devices.

    Args:
        step: Lightning's ``global_step``.
        tensors: parameters and buffers by name, the buffers that no checkpoint holds among them.
        attributes: by module name, plain attributes that carry tensors from batch to batch,
            as a hidden state, or may yet.
        optimizers, schedulers: their ``state_dict``.
        scaler: of the gradient scaler; None without one.
        clips: the state of the policies of each callback of the Trainer that has some, by
            its position. Its counts go on.
    """

    step: int
    tensors: dict[str, Tensor]
    attributes: dict[str, dict[str, Any]]
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    scaler: dict[str, Any] | None
    clips: dict[int, list[list[dict[str, Any]]]]

    @classmethod
    def of(cls, trainer: Trainer, module: LightningModule) -> State:
        """The present state. Reading it draws no random number and changes nothing."""
        scaler = active_scaler(trainer)
        return cls(
            trainer.global_step,
            {name: copied(tensor) for name, tensor in _tensors(module).items()},
            _carried(module),
            [copied(optimizer.state_dict()) for optimizer in trainer.optimizers],
            [copied(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            None if scaler is None else copied(scaler.state_dict()),
            {
                at: [[copied(p.state_dict()) for p in policies] for policies in clip.policies_in_use()]
                for at, clip in _clips(trainer).items()
            },
        )

    @torch.no_grad()
    def restore(self, trainer: Trainer, module: LightningModule) -> None:
        """Put back everything but attributes, in place: whoever holds a reference to
        a parameter sees the old value.
        """
        for name, tensor in _tensors(module).items():
            if (saved := self.tensors.get(name)) is None:  # a buffer that was registered since
                continue
            if tensor.shape == saved.shape:
                tensor.copy_(saved)
            else:  # a buffer that grows as it trains
                tensor.data = saved.to(tensor.device, copy=True)
        # What is loaded becomes the optimizer's own, and is changed in place by its next
        # step: hence copies of the copies.
        for optimizer, saved in zip(trainer.optimizers, self.optimizers, strict=True):
            optimizer.load_state_dict(copied(saved))
        for config, saved in zip(trainer.lr_scheduler_configs, self.schedulers, strict=True):
            config.scheduler.load_state_dict(copied(saved))
        scaler = active_scaler(trainer)
        if scaler is not None and self.scaler:
            scaler.load_state_dict(copied(self.scaler))
        for at, clip in _clips(trainer).items():
            # An optimizer that had not stepped yet when the copy was taken has none in it.
            for policies, saved in zip(clip.policies_in_use(), self.clips.get(at, []), strict=False):
                for policy, state in zip(policies, saved, strict=True):
                    policy.load_state_dict(copied(state))

    def restore_attributes(self, module: LightningModule) -> None:
        """Put them back. To be done when the next batch begins: until then the module's own
        hooks may read what the step left.

        What a metric has seen stays.
        """
        for name, child in module.named_modules():
            for key, then in self.attributes.get(name, {}).items():
                now = vars(child).get(key)
                if may_carry(now) and (holds_any(now) or holds_any(then)):
                    setattr(child, key, nested(then))


class GoodStates:
    """Two copies of the training's state: one that proved good, and a younger one that has yet to.

    A copy is taken every ``every`` optimizer steps, and counts as good when the next one is due and
    no anomaly was seen in between: an anomaly is seen some time after it was sown. What training
    began with counts as good.

    Args:
        every: optimizer steps from one copy to the next, ≥ 1.
        take: makes a copy of the present state.
    """

    def __init__(self, every: int, take: Callable[[], State]) -> None:
        self._every, self._take = every, take
        self._steps = 0
        self._candidate: State | None = None
        self.good = take()

    def count(self) -> bool:
        """A step without an anomaly has been taken. Returns whether a
        younger state has proved good by it.
        """
        self._steps += 1
        if self._steps < self._every:
            return False
        self._steps, proved = 0, self._candidate
        if proved is not None:
            self.good = proved
        self._candidate = self._take()
        return proved is not None

    def forget(self) -> None:
        """An anomaly was seen: only what proved good before stays."""
        self._steps, self._candidate = 0, None


def copied(value: Any) -> Any:
    """A copy that shares nothing with ``value``; its tensors lie on the CPU."""
    if isinstance(value, Tensor):
        return local(value.detach()).to("cpu", copy=True)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return copy.deepcopy(value)


def _tensors(module: LightningModule) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _carried(module: LightningModule) -> dict[str, dict[str, Any]]:
    metrics = {name for name, child in module.named_modules() if isinstance(child, Metric)}
    return {name: values for name, values in attributes(module, may_carry).items() if name not in metrics}


def _clips(trainer: Trainer) -> dict[int, HasPolicies]:
    callbacks: list[object] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
    return {at: callback for at, callback in enumerate(callbacks) if isinstance(callback, HasPolicies)}
