"""Gradients that policies on tensors are held against."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gradwatch.clip import AGC, AGGC, AdaGC, TensorPolicy, Value
from lightning_gradwatch.clip.norms import global_norm

SHAPES = {"embedding.weight": (6, 3), "rnn.bias_hh_l0": (5,), "conv.weight": (3, 2, 2), "scale": ()}
NAMES = list(SHAPES)

HARDENED: dict[str, Callable[[], TensorPolicy]] = {
    "value": lambda: Value(0.5),
    "agc": AGC,
    "agc-exclude": lambda: AGC(exclude=["embedding.*"]),
    "adagc": lambda: AdaGC(warmup_steps=10),
    "adagc-free": lambda: AdaGC(None, warmup_steps=10),
    "aggc": AGGC,
    "aggc-two": lambda: AGGC({"vectors": ["rnn.*", "scale"]}, high=1.2),
}


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """One parameter a shape."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES.values()]


def gradients(count: int, seed: int = 0, spread: float = 0.5, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """For each step one gradient a shape, of norms that scatter around 1."""
    generator = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...]) -> Tensor:
        size = torch.exp(spread * torch.randn((), generator=generator))
        way = torch.randn(shape, generator=generator)
        return (way / way.norm() * size).to(dtype)

    return [[one(shape) for shape in SHAPES.values()] for _ in range(count)]


def clip_all(
    policy: TensorPolicy, steps: Sequence[Sequence[Tensor]], parameters: Sequence[Tensor] | None = None
) -> tuple[list[list[Tensor]], list[float]]:
    """What becomes of copies of the gradients, and the shares that were clipped."""
    parameters = weights(dtype=steps[0][0].dtype) if parameters is None and steps else parameters
    clipped, shares = [], []
    for step in steps:
        own = [gradient.clone() for gradient in step]
        shares.append(float(policy.clip_(own, parameters or [], NAMES, global_norm(own))))
        clipped.append(own)
    return clipped, shares


def norm(tensor: Tensor) -> float:
    """The norm, in double precision."""
    return math.sqrt(math.fsum(float(x) ** 2 for x in tensor.detach().double().flatten()))


def numbers_in(state: object) -> list[float]:
    """All floats of a state, also those in tensors."""
    if isinstance(state, Tensor):
        return state.flatten().tolist()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    own = [float(state)] if isinstance(state, float) else []
    return own + [x for value in values for x in numbers_in(value)]


def timm_agc() -> Any:
    """timm's own file, and that alone: importing the package would import torchvision, and need a build of it for this torch."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed: pip install --no-deps timm==1.0.31")
    spec = importlib.util.spec_from_file_location("timm_agc", Path(found.origin).parent / "utils" / "agc.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
