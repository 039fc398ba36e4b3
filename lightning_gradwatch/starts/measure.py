"""One backward pass of a copied model, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.arguments import check
from lightning_gradwatch.engine.once import measure_once
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.profile import Profile, gradient_horizon, growth_rate
from lightning_gradwatch.recurrent.capture.modules import discover
from lightning_gradwatch.starts.layer_weights import LayerWeights, Recurrent, layers_of
from lightning_gradwatch.starts.predicted import predicted_horizon
from lightning_gradwatch.starts.row import StartRow

Loss = Callable[[nn.Module, Any], Tensor]


def measure(start: str, model: nn.Module, batch: Any, loss: Loss, max_sequences: int | None) -> list[StartRow]:
    """The rows of a start: forward and backward once, nothing stepped.

    Args:
        model: a copy, of which gradients and buffers change.
        batch: a copy, too.

    Raises:
        ValueError: the loss is no scalar with a graph.
    """
    options = WatchOptions(find_cells=False, max_sequences=max_sequences)
    value, profiles = measure_once(model, lambda: _checked(loss(model, batch)), options)
    return list(_rows(start, model, profiles, value))


def _checked(value: object) -> Tensor:
    rule, remedy = "one number that depends on the weights", "It is what training_step, or `loss`, returns."
    check(isinstance(value, Tensor), "loss", rule, type(value).__name__, remedy)
    assert isinstance(value, Tensor)
    check(value.numel() == 1 and value.requires_grad, "loss", rule, tuple(value.shape), remedy)
    return value


def _rows(start: str, model: nn.Module, profiles: list[Profile], loss: float) -> Iterator[StartRow]:
    modules = discover(model)
    seen: set[tuple[str, int, str]] = set()
    for profile in profiles:
        module = modules.get(profile.module)
        if not profile.primary or profile.place in seen or not isinstance(module, Recurrent):
            continue
        seen.add(profile.place)
        layers = {(weights.layer, weights.direction): weights for weights in layers_of(module)}
        yield _row(start, profile, layers[profile.layer, profile.direction], loss)


def _row(start: str, profile: Profile, weights: LayerWeights, loss: float) -> StartRow:
    lagged = profile.lagged()
    horizon = gradient_horizon(lagged)
    return StartRow(
        start=start,
        module=profile.module,
        kind=weights.kind,
        layer=profile.layer,
        direction=profile.direction,
        timesteps=profile.timesteps,
        horizon=horizon.lag,
        censored=horizon.censored,
        growth_rate=growth_rate(lagged),
        predicted=predicted_horizon(weights),
        weight_gradient=_norm(weights.w_hh.grad),
        loss=loss,
        lagged=lagged,
        inexact_reason=profile.inexact_reason,
    )


def _norm(gradient: Tensor | None) -> float | None:
    if gradient is None:
        return None
    norm = float(gradient.norm())
    return norm if math.isfinite(norm) else math.inf
