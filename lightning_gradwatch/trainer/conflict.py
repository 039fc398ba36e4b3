"""Who else clips the gradients, or makes it impossible to."""

from __future__ import annotations

from lightning_gradwatch.trainer.compat import LightningModule, Trainer

_UNSUPPORTED = {
    "DeepSpeedStrategy": "DeepSpeed clips and steps inside its own engine; set its `gradient_clipping` instead",
    "FSDPStrategy": "under FSDP 1 each rank sees only its shards; use ModelParallelStrategy (FSDP 2)",
}


def other_clipping(trainer: Trainer, module: LightningModule) -> str | None:
    """The other thing that clips after AdaptiveClip has, in words; None where nothing does."""
    if trainer.gradient_clip_val:
        return f"the Trainer (gradient_clip_val={trainer.gradient_clip_val})"
    hook = "configure_gradient_clipping"
    # By module name, so that a LightningModule of either namespace is known as Lightning's own.
    if hook in vars(module) or (
        not getattr(type(module), hook).__module__.endswith("pytorch.core.module")
        and not getattr(type(module), hook).__module__.startswith("pytorch_lightning.")
    ):
        return f"{type(module).__name__}.{hook}" if module.automatic_optimization else None
    return None


def unsupported_strategy(trainer: Trainer) -> str | None:
    """Why nothing can be clipped under the Trainer's strategy; None where it can."""
    return next(
        (_UNSUPPORTED[kind.__name__] for kind in type(trainer.strategy).__mro__ if kind.__name__ in _UNSUPPORTED), None
    )
