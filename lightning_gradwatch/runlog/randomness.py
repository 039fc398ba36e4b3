"""The states of the random generators that a training step may draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators (of the CPU and of ``device``), Python's and
    NumPy's; reading them draws nothing.
    """
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)  # kept by the host: no sync
    if "numpy" in sys.modules:
        state = sys.modules["numpy"].random.get_state()
        if isinstance(state, tuple):  # of another generator than NumPy's own it is a dict
            kind, keys, *rest = state
            states["numpy"] = (kind, torch.from_numpy(keys.astype("int64")), *rest)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back. CUDA's state means nothing on another kind of
    device and is passed over there.
    """
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in states:
        import numpy as np

        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
