"""Which recurrent modules cannot be measured, because this process does not hold their weights."""

from __future__ import annotations

from torch import nn

from lightning_gradwatch.recurrent.capture.modules import sharded
from lightning_gradwatch.trainer.compat import Trainer

_STRATEGIES = {
    "DeepSpeedStrategy": "DeepSpeed's engine owns its weights and the scale of its gradients",
    "FSDPStrategy": "under FSDP 1 its weights are gone from this process when its gradients arrive",
}


def out_of_reach(trainer: Trainer, module: nn.Module) -> str | None:
    """Why a module cannot be measured under the Trainer's strategy; None where it can."""
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in _STRATEGIES:
            return _STRATEGIES[kind.__name__]
    return sharded(module)


def gradients_are_common(trainer: Trainer) -> bool:
    """Whether every rank sees the same gradients of the parameters, so that what
    follows from them need be said once.
    """
    return any(kind.__name__ == "DDPStrategy" for kind in type(trainer.strategy).__mro__)
