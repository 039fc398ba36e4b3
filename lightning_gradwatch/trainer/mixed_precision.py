"""What the callbacks must know about the gradient scaler of mixed precision."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.scaler import scale_of
from lightning_gradwatch.trainer.compat import Trainer


def active_scaler(trainer: Trainer) -> Any | None:
    """The gradient scaler, where there is one and it is enabled."""
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def loss_scale(trainer: Trainer) -> Tensor | float:
    """What multiplies the loss of this backward pass; 1.0 without a scaler.

    The scale is kept as it is now, on its device: read later it may have been updated,
    read now it would be a host sync.
    """
    scaler = active_scaler(trainer)
    if scaler is None:
        return 1.0
    return scale_of(scaler)


def unscale_once(scaler: Any, optimizer: Optimizer) -> None:
    """See to it that the gradients are unscaled.

    Lightning unscales before this hook, except for optimizers that do it in their own step
    (``fused=True``); those accept gradients that are unscaled already. A second ``unscale_`` would
    raise.
    """
    if _state(scaler, optimizer)["stage"].name == "READY":
        scaler.unscale_(optimizer)


def scaler_will_skip(scaler: Any, optimizer: Optimizer) -> bool:
    """Whether the scaler itself found an inf or NaN. A host sync: ask
    only when the norm is not finite.
    """
    flags = _state(scaler, optimizer)["found_inf_per_device"].values()
    return any(float(flag) > 0 for flag in flags)


def is_unscaled(scaler: Any, optimizer: Optimizer) -> bool:
    """Whether the scaler has taken its factor out of the gradients."""
    state = scaler._per_optimizer_states.get(id(optimizer))  # asked for by its key, it would be made
    return state is not None and state["stage"].name != "READY"


def _state(scaler: Any, optimizer: Optimizer) -> dict[str, Any]:
    return scaler._per_optimizer_states[id(optimizer)]
