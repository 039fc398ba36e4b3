"""``initialise_``: write one published initialisation into a model's recurrent modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from lightning_gradwatch.arguments import check, one_of, whole
from lightning_gradwatch.recurrent.capture.modules import discover
from lightning_gradwatch.starts.known import STARTS, Start
from lightning_gradwatch.starts.layer_weights import LayerWeights, Recurrent, layers_of

M = TypeVar("M", bound=nn.Module)


def initialise_(module: M, start: str, *, timesteps: int) -> M:
    """Write an initialisation into a recurrent module, or into all of those in a model that it is
    for, every layer and direction.

    It draws from torch's global generator, as ``torch.nn.init`` does.

    Args:
        module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, one of their cells, or a model with some.
        start: ``"pytorch"``, ``"gate_bias"``, ``"chrono"``, ``"uniform_gates"``,
            ``"orthogonal"`` or ``"identity"``; of each, :data:`STARTS` says the source.
        timesteps: of the sequences, ≥ 1.

    Returns:
        ``module``.

    Raises:
        ValueError: an argument breaks its rule, or the start is for no module in ``module``.
            Nothing has been changed then.
    """
    one_of("start", start, STARTS, "compare_starts(model, batch) shows what each would give.")
    whole("timesteps", timesteps, "Give the length of your sequences.")
    apply_start(module, start, dict.fromkeys(discover(module), timesteps))
    return module


@torch.no_grad()
def apply_start(model: nn.Module, name: str, timesteps: Mapping[str, int]) -> list[str]:
    """Write a start into each module that ``timesteps`` names and that it is for.

    Returns:
        Their names.

    Raises:
        ValueError: it is for none of them. Nothing has been changed then.
    """
    start = STARTS[name]
    modules = {name: module for name, module in discover(model).items() if name in timesteps}
    whole_modules = {name: list(layers_of(module)) for name, module in modules.items() if isinstance(module, Recurrent)}
    misfits = {name: _misfit(start, layers) for name, layers in whole_modules.items()}
    fit = [name for name, misfit in misfits.items() if misfit is None]
    if not fit:
        check(False, "start", "one for a module of the model", start.name, _why(start, misfits))
    for name in fit:
        for layer in whole_modules[name]:
            start.apply(layer, timesteps[name])
    return fit


def _misfit(start: Start, layers: list[LayerWeights]) -> str | None:
    return next((why for layer in layers if (why := start.misfit(layer)) is not None), None)


def _why(start: Start, misfits: Mapping[str, str | None]) -> str:
    if not misfits:
        return "There is no nn.RNN, nn.LSTM, nn.GRU nor a cell of theirs in it."
    reasons = "; ".join(f"{name}: {why}" for name, why in misfits.items())
    others = ", ".join(f'"{name}"' for name in STARTS if name != start.name)
    return f"In {reasons}. The others are {others}."


def fitting(model: nn.Module) -> list[str]:
    """Names of the starts that are for some recurrent module of a model."""
    layers = [list(layers_of(module)) for module in discover(model).values() if isinstance(module, Recurrent)]
    return [name for name, start in STARTS.items() if any(_misfit(start, one) is None for one in layers)]
