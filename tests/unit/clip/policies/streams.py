"""Norm sequences that policies are held against, and what must hold for every policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from hypothesis import strategies as st

from lightning_gradwatch.clip import AutoClip, ClipPolicy, Decision, Norm, Spike, StepReading, ZClip

HARDENED: dict[str, Callable[[], ClipPolicy]] = {
    "norm": Norm,
    "autoclip": AutoClip,
    "zclip": ZClip,
    "zclip-mean": lambda: ZClip(mode="mean"),
    "zclip-percentile": lambda: ZClip(mode="percentile"),
    "spike": Spike,
}
EQUIVARIANT: dict[str, Callable[[], ClipPolicy]] = {
    "autoclip": AutoClip,
    "zclip": lambda: ZClip(max_norm=None),
    "zclip-mean": lambda: ZClip(mode="mean", max_norm=None),
    "zclip-percentile": lambda: ZClip(mode="percentile", max_norm=None),
    "spike": Spike,
}

ordinary = st.floats(min_value=1e-3, max_value=1e3)
breaking = st.sampled_from([0.0, 1e-30, 1e15, 1e30, 1e200, math.inf, -math.inf, math.nan])
norms = st.lists(st.one_of(ordinary, ordinary, breaking), min_size=1, max_size=80)


def lognormal(count: int, *, spread: float = 0.3, seed: int = 0) -> list[float]:
    """Norms of a stationary run."""
    return [float(x) for x in np.random.default_rng(seed).lognormal(0.0, spread, count)]


def adversarial(count: int, *, seed: int = 0) -> list[float]:
    """Spikes, plateaus, ties, tiny and huge norms: finite, and greater than zero."""
    rng = np.random.default_rng(seed)
    kinds = [rng.lognormal(0, 2, count), rng.choice([0.5, 1.0, 2.0], count), 10.0 ** rng.uniform(-12, 12, count)]
    return [float(x) for x in np.choose(rng.integers(0, 3, count), kinds)]


def decide_all(policy: ClipPolicy, stream: Iterable[float]) -> list[Decision]:
    """One decision a norm."""
    return [policy.decide(StepReading(norm)) for norm in stream]


def numbers_in(state: object) -> list[float]:
    """All floats of a state dict."""
    if isinstance(state, dict):
        return [x for value in state.values() for x in numbers_in(value)]
    if isinstance(state, list):
        return [x for value in state for x in numbers_in(value)]
    return [state] if isinstance(state, float) else []


def assert_never_increases(decision: Decision) -> None:
    """The coefficient lies in (0, 1]."""
    assert 0.0 < decision.coefficient <= 1.0


def assert_scale_equivariant(make: Callable[[], ClipPolicy], stream: list[float], scale: float) -> None:
    """Norms times ``scale`` give the same coefficients, and thresholds times ``scale``."""
    for plain, scaled in zip(decide_all(make(), stream), decide_all(make(), [n * scale for n in stream]), strict=True):
        assert math.isclose(plain.coefficient, scaled.coefficient, rel_tol=1e-9)
        assert (plain.threshold is None) == (scaled.threshold is None)
        if plain.threshold is not None and scaled.threshold is not None:
            assert math.isclose(plain.threshold * scale, scaled.threshold, rel_tol=1e-9)
