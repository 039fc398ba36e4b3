"""Who else clips the gradients, or makes it impossible to."""

from __future__ import annotations

from lightning_gradwatch.trainer.compat import LightningModule, MisconfigurationException, Trainer, rank_zero_warn

_UNSUPPORTED = {
    "DeepSpeedStrategy": "DeepSpeed clips and steps inside its own engine; set its `gradient_clipping` instead",
    "FSDPStrategy": "under FSDP 1 each rank sees only its shards; use ModelParallelStrategy (FSDP 2)",
}


def defers(trainer: Trainer, module: LightningModule, on_conflict: str) -> bool:
    """Whether AdaptiveClip leaves the clipping to another; that there is one is said once.

    Args:
        on_conflict: ``both``, ``defer`` or ``raise``.

    Raises:
        MisconfigurationException: there is one, and ``on_conflict`` is ``raise``.
    """
    other = _other_clipping(trainer, module)
    if other is None:
        return False
    remedy = 'Remove one of them, or choose with AdaptiveClip(on_conflict="both" | "defer" | "raise").'
    if on_conflict == "raise":
        raise MisconfigurationException(f"AdaptiveClip and {other} both clip the gradients. {remedy}")
    what = f"leaves clipping to {other}" if on_conflict == "defer" else f"clips first, then {other} does"
    rank_zero_warn(f"AdaptiveClip {what}. {remedy}")
    return on_conflict == "defer"


def unsupported_strategy(trainer: Trainer) -> str | None:
    """Why nothing can be clipped under the Trainer's strategy; None where it can."""
    return next(
        (_UNSUPPORTED[kind.__name__] for kind in type(trainer.strategy).__mro__ if kind.__name__ in _UNSUPPORTED), None
    )


def _other_clipping(trainer: Trainer, module: LightningModule) -> str | None:
    """The other thing that clips after AdaptiveClip has, in words; None where nothing does."""
    if trainer.gradient_clip_val:
        return f"the Trainer (gradient_clip_val={trainer.gradient_clip_val})"
    return clipping_override(module) if module.automatic_optimization else None


def clipping_override(module: LightningModule) -> str | None:
    """The module's own ``configure_gradient_clipping``, by name; None where it has
    Lightning's.
    """
    hook = "configure_gradient_clipping"
    module_name = getattr(type(module), hook).__module__
    # By module name, so that a LightningModule of either namespace is known as Lightning's own.
    lightnings = module_name.endswith("pytorch.core.module") or module_name.startswith("pytorch_lightning.")
    return f"{type(module).__name__}.{hook}" if hook in vars(module) or not lightnings else None
