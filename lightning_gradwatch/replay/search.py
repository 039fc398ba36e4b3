"""Finds the operation of a bundle's step in which its event began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.capture.modules import plain_name
from lightning_gradwatch.replay.origins import Origin, Origins
from lightning_gradwatch.replay.rerun import rerun
from lightning_gradwatch.runlog.bundles import BUNDLE_KEY
from lightning_gradwatch.runlog.portable import restored
from lightning_gradwatch.trainer.compat import Callback, LightningModule, Trainer


def find_origin(module: LightningModule, bundle: Mapping[str, Any], *, device: str = "cpu") -> Origin | None:
    """Where the numbers of the bundle's event began; None where the step, run this way, has none.

    The step is run once more, with every operation looked at and oneDNN off, so that a recurrent
    layer on the CPU is seen as the operations that it consists of. It takes many times as long as
    in the training.
    """
    search = _Search(bundle)
    extras = bundle[BUNDLE_KEY]
    plain: dict[str, Any] = {**extras, "backend": {**extras["backend"], "onednn": False}}
    try:
        rerun(module, {**bundle, BUNDLE_KEY: plain}, [search], device=device)
    finally:
        search.end()
    return search.origin


class _Search(Callback):
    """Looks at every operation from the start of the step to its end."""

    def __init__(self, bundle: Mapping[str, Any]) -> None:
        self._event: dict[str, Any] = bundle[BUNDLE_KEY]["event"]
        self._origins, self._on, self._anomaly = Origins(), False, torch.is_anomaly_enabled()
        self._names: dict[nn.Module, str] = {}
        self._handles: list[RemovableHandle] = []
        self._stack: list[str] = []
        self._at_module: list[Origin] = []
        self._loss: Origin | None = None
        self.origin: Origin | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._names = {child: plain_name(name) for name, child in pl_module.named_modules()}
        for name, tensor in _named("batch", batch):
            self._origins.give(name, tensor)
        for name, tensor in (*pl_module.named_parameters(), *pl_module.named_buffers()):
            self._origins.give(f"the weight {name}", tensor)
            if tensor.grad is not None:
                self._origins.give(f"the gradient of {name}, from a micro-batch before this one,", tensor.grad)
        self._handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        torch.autograd.set_detect_anomaly(True, check_nan=False)  # it notes the forward line of each backward operation
        self._origins.__enter__()
        self._on = True

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._loss = self._loss or self._origins.of(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.origin is None:
            self.origin = self._judge(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self.end()
        if self.origin is None:  # a backward pass outside Lightning's calls no hook
            self.origin = self._judge(pl_module)

    def end(self) -> None:
        """Take everything off."""
        if self._on:
            self._on = False
            self._origins.__exit__(None, None, None)
            torch.autograd.set_detect_anomaly(self._anomaly)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _judge(self, module: LightningModule) -> Origin | None:
        """What the event is about: its module's forward, else the loss, else the gradients."""
        forward = [*self._at_module, *([self._loss] if self._loss else [])]
        if forward:
            return min(forward, key=lambda origin: origin.number)
        gradients = [self._origins.of(parameter.grad) for parameter in module.parameters()]
        return min((one for one in gradients if one is not None), key=lambda origin: origin.number, default=None)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        name = self._names.get(module)
        self._stack.append(name or self._origins.module or "")
        self._origins.module = self._stack[-1]
        self._note(name, inputs)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()
        self._origins.module = self._stack[-1] if self._stack else None
        self._note(self._names.get(module), output)

    def _note(self, name: str | None, values: Any) -> None:
        if name is not None and name == self._event["module"]:
            origins = [self._origins.of(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
            self._at_module += [origin for origin in origins if origin is not None]


def _named(name: str, value: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a batch, each with the way to it."""
    value = restored(value)
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, Mapping):
        return [one for key, item in value.items() for one in _named(f"{name}[{key!r}]", item)]
    if isinstance(value, (list, tuple)):
        return [one for index, item in enumerate(value) for one in _named(f"{name}[{index}]", item)]
    return []
