"""What is behind the wrappers that a loop holds its model and its optimizer in."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_gradwatch.recurrent.capture.modules import sharded


def inner_model(model: nn.Module) -> nn.Module:
    """The model that gives the names, without what Fabric, DDP and ``torch.compile`` put around."""
    while True:
        inner = _behind(model)
        if inner is None:
            return model
        model = inner


def inner_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer whose hooks fire: Fabric and others put a wrapper around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def optimizers_of(given: Any, remedy: str = "") -> list[Optimizer]:
    """One optimizer or several, as they were given.

    Raises:
        TypeError: one is none; the message ends with the remedy.
    """
    optimizers: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    for one in optimizers:
        if not isinstance(inner_optimizer(one), Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            message = f"`optimizer` must be a torch.optim.Optimizer, or several; found {type(one).__name__}."
            raise TypeError(f"{message} {remedy}".rstrip())
    return optimizers


def out_of_reach(model: nn.Module, module: nn.Module) -> str | None:
    """Why a module cannot be measured in this process; None where it can."""
    kinds = {type(part).__name__ for part in (model, *model.modules())}
    if "FullyShardedDataParallel" in kinds:
        return "under FSDP 1 its weights are gone from this process when its gradients arrive"
    if "DeepSpeedEngine" in kinds:
        return "DeepSpeed's engine owns its weights and the scale of its gradients"
    return sharded(module)


def _behind(model: nn.Module) -> nn.Module | None:
    for name in ("_original_module", "_orig_mod"):  # Fabric's, and the compiler's
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return inner
    return model.module if isinstance(model, DistributedDataParallel) else None
