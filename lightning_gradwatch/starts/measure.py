"""One backward pass of a copied model, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.arguments import check
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.engine.step import Step
from lightning_gradwatch.engine.watch import Watch
from lightning_gradwatch.events import Moment
from lightning_gradwatch.profile import Profile, gradient_horizon, growth_rate
from lightning_gradwatch.recurrent.capture.fit_over import beside_training
from lightning_gradwatch.recurrent.capture.modules import discover
from lightning_gradwatch.starts.places import Place, Recurrent, places
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
    with beside_training(), torch.enable_grad():
        options = WatchOptions(find_cells=False, max_sequences=max_sequences)
        watch = Watch(model, discover(model), options)
        try:
            value, profiles = _pass(watch, model, batch, loss)
        finally:
            watch.close()
    return list(_rows(start, model, profiles, value))


def _pass(watch: Watch, model: nn.Module, batch: Any, loss: Loss) -> tuple[float, list[Profile]]:
    watch.capture.begin()
    value = loss(model, batch)
    _check(value)
    step = Step(
        Moment(0), 0, sampled=True, accumulation=1, scale=1.0, complete=True, scaled=False, loss=value, batch=batch
    )
    observations = [watch.before_backward(value, step)]
    value.backward()
    observations += [watch.after_backward(value, step), watch.end_step(step.moment)]
    profiles = [p for observation in observations for sample in observation.samples for p in sample.profiles]
    return float(value.detach()), profiles


def _check(value: object) -> None:
    rule, remedy = "one number that depends on the weights", "It is what training_step, or `loss`, returns."
    check(isinstance(value, Tensor), "loss", rule, type(value).__name__, remedy)
    assert isinstance(value, Tensor)
    check(value.numel() == 1 and value.requires_grad, "loss", rule, tuple(value.shape), remedy)


def _rows(start: str, model: nn.Module, profiles: list[Profile], loss: float) -> Iterator[StartRow]:
    modules = discover(model)
    seen: set[tuple[str, int, str]] = set()
    for profile in profiles:
        module = modules.get(profile.module)
        if not profile.primary or profile.place in seen or not isinstance(module, Recurrent):
            continue
        seen.add(profile.place)
        layers = {(place.layer, place.direction): place for place in places(module)}
        yield _row(start, profile, layers[profile.layer, profile.direction], loss)


def _row(start: str, profile: Profile, place: Place, loss: float) -> StartRow:
    lagged = profile.lagged()
    horizon = gradient_horizon(lagged)
    return StartRow(
        start=start,
        module=profile.module,
        kind=place.kind,
        layer=profile.layer,
        direction=profile.direction,
        timesteps=profile.timesteps,
        horizon=horizon.lag,
        censored=horizon.censored,
        growth_rate=growth_rate(lagged),
        predicted=predicted_horizon(place),
        weight_gradient=_norm(place.w_hh.grad),
        loss=loss,
        lagged=lagged,
        inexact_reason=profile.inexact_reason,
    )


def _norm(gradient: Tensor | None) -> float | None:
    if gradient is None:
        return None
    norm = float(gradient.norm())
    return norm if math.isfinite(norm) else math.inf
