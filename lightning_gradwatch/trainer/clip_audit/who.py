"""Who clips, as far as settings and code say it."""

from __future__ import annotations

from torch.optim import SGD, Optimizer

from lightning_gradwatch.audit import Clippers
from lightning_gradwatch.clip.between.parameters import hooked
from lightning_gradwatch.clip.between.source import naming, too_early
from lightning_gradwatch.trainer.compat import LightningModule, Trainer
from lightning_gradwatch.trainer.conflict import clipping_override


def who_clips(trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> Clippers:
    """What is known of who clips the gradients of ``optimizer``."""
    automatic = module.automatic_optimization
    bound = trainer.gradient_clip_val if automatic else None
    algorithm = trainer.gradient_clip_algorithm
    named, early = naming(module), too_early(module, automatic=automatic)
    for callback in callbacks_of(trainer):
        named |= naming(callback)
    override = clipping_override(module) if automatic else None
    named = {name: surely for name, surely in named.items() if name != override}
    return Clippers(
        bound=float(bound) if bound and bound > 0 else None,
        by_value=str(getattr(algorithm, "value", algorithm)) == "value",
        override=override or "",
        adaptive=" and ".join(filter(None, (getattr(one, "clips_by", "") for one in callbacks_of(trainer)))),
        named=tuple(named),
        surely=tuple(name for name, surely in named.items() if surely),
        early=tuple(name for name in named if name in early),
        hooked=hooked(optimizer),
        goes_along=isinstance(optimizer, SGD),
    )


def callbacks_of(trainer: Trainer) -> list[object]:
    """Of the Trainer, in their order."""
    return list(trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
