"""Clipping by the z-score of the norm."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.policy import ArgumentsMixin, Decision, StepReading, bounded, usable

_ABSURD = 100.0  # times the warm-up's median: what lies beyond is left out of μ and σ
_LEAST_SPREAD = 0.05  # of μ: the least σ of the hardened form


class ZClip(ArgumentsMixin):
    """Clip where the norm's z-score against a running mean and variance exceeds z₀.

    Kumar, Owen, Chowdhury and Güra (2025), "ZClip: Adaptive spike mitigation for LLM pre-training",
    algorithm 1. During the first ``warmup_steps`` the norms are collected and clipped at
    ``max_norm``; then μ is their mean and σ² their population variance. After that, with z = (N −
    μ)/(σ + ε):

    - ``adaptive_scaling``: if z > z₀, c = f·(μ + z₀σ/(z/z₀)), so that the
      worse the spike, the nearer to μ;
    - ``mean``: if z > z₀, c = μ;
    - ``percentile``: if N > μ + z₀σ, c = μ + z₀σ.

    The gradient is scaled to min(c or N, ``max_norm``). The averages take x = c or N:
    μ ← αμ + (1−α)x, *then* σ² ← ασ² + (1−α)(x − μ)².

    ``as_published`` agrees with PyPI's zclip 1.0.0 to rounding. The hardened
    form differs where that breaks:

    =============================  ======================================  =====================================
    input                          as published                            hardened
    =============================  ======================================  =====================================
    one NaN or inf                 μ and σ are NaN for ever                it enters nothing
    an all-zero warm-up            every later gradient is clipped to 0    zeros do not count as warm-up
    a constant warm-up (σ = 0)     the threshold is pinned at μ            σ is at least 5 % of μ
    one norm of 1e30 in warm-up    μ and σ are of that size for long       over 100 medians is left out of μ, σ
    norms of 1e-9                  the constants of 1e-6 swamp them        none: scale-equivariant but max_norm
    =============================  ======================================  =====================================

    Args:
        mode: which rule, as above.
        alpha: α, the averages' memory.
        z_threshold: z₀.
        max_norm: a bound beside the adaptive one, in the norm's unit; None for none.
        warmup_steps: how many norms are collected first.
        eps: ε of the published form.
        factor: f of ``adaptive_scaling``.
        skip_update_on_spike: leave μ and σ alone on a step that was clipped.
        as_published: follow the published code where it breaks, too.
    """  # noqa: W505  # a table keeps its width

    _arguments = (
        "mode",
        "alpha",
        "z_threshold",
        "max_norm",
        "warmup_steps",
        "eps",
        "factor",
        "skip_update_on_spike",
        "as_published",
    )

    def __init__(
        self,
        mode: Literal["adaptive_scaling", "mean", "percentile"] = "adaptive_scaling",
        alpha: float = 0.97,
        z_threshold: float = 2.5,
        max_norm: float | None = 1.0,
        warmup_steps: int = 25,
        eps: float = 1e-6,
        factor: float = 1.0,
        skip_update_on_spike: bool = False,
        as_published: bool = False,
    ) -> None:
        advice = "The paper advises"
        number, rule = functools.partial(arguments.number, owner=self), f"{advice} 'adaptive_scaling'."
        arguments.one_of("mode", mode, ("adaptive_scaling", "mean", "percentile"), rule, owner=self)
        self.mode = mode
        self.alpha = number("alpha", alpha, lambda f: 0 <= f < 1, "in [0, 1)", f"{advice} 0.97.")
        self.z_threshold = number("z_threshold", z_threshold, lambda f: f > 0, "> 0", f"{advice} 2.5.")
        self.max_norm = None
        if max_norm is not None:
            self.max_norm = arguments.positive("max_norm", max_norm, "Use None for no fixed bound.", owner=self)
        self.warmup_steps = arguments.whole("warmup_steps", warmup_steps, f"{advice} 25.", owner=self)
        self.eps = number("eps", eps, lambda f: f >= 0, "≥ 0", "Leave it at 1e-6.")
        remedy = "Leave it at 1, or use 0.5 to 0.9 to clip harder."
        self.factor = number("factor", factor, lambda f: 0 < f <= 1, "in (0, 1]", remedy)
        self.skip_update_on_spike = skip_update_on_spike
        self.as_published = as_published
        self._warmup: list[float] = []
        self._mean: float | None = None
        self._variance = 0.0

    def decide(self, reading: StepReading) -> Decision:
        """Collect during warm-up; then clip by the z-score."""
        norm = reading.norm
        if not self.as_published and not usable(norm):
            return Decision(self.max_norm, 1.0)
        if self._mean is None:
            self._collect(norm)
            return self._decision(norm, None, None)
        bound, clipped = self._judge(norm, self._mean)
        if clipped is None or not self.skip_update_on_spike:
            self._update(norm if clipped is None else clipped, self._mean)
        return self._decision(norm, bound, clipped)

    def state_dict(self) -> dict[str, Any]:
        """Warm-up norms, mean and variance."""
        return {"warmup": list(self._warmup), "mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._warmup = list(state_dict["warmup"])
        self._mean, self._variance = state_dict["mean"], state_dict["variance"]

    def _collect(self, norm: float) -> None:
        self._warmup.append(norm)
        if len(self._warmup) < self.warmup_steps:
            return
        norms, self._warmup = self._warmup, []
        if not self.as_published:
            bound = _ABSURD * sorted(norms)[(len(norms) - 1) // 2]
            norms = [n for n in norms if n <= bound]
        mean = sum(norms) / len(norms)
        self._mean, self._variance = mean, sum(_square(n - mean) for n in norms) / len(norms)

    def _judge(self, norm: float, mean: float) -> tuple[float, float | None]:
        """The largest ordinary norm, and c; None where the norm is ordinary."""
        deviation, eps = math.sqrt(self._variance), self.eps
        if not self.as_published:
            deviation, eps = max(deviation, _LEAST_SPREAD * mean), 0.0
        bound = mean + self.z_threshold * deviation
        if self.mode == "percentile":
            return bound, bound if norm > bound else None
        z = (norm - mean) / (deviation + eps)
        if not z > self.z_threshold:
            return bound, None
        if self.mode == "mean":
            return bound, mean
        return bound, (mean + self.z_threshold * deviation / (z / self.z_threshold)) * self.factor

    def _update(self, x: float, mean: float) -> None:
        self._mean = mean = self.alpha * mean + (1 - self.alpha) * x
        self._variance = self.alpha * self._variance + (1 - self.alpha) * _square(x - mean)

    def _decision(self, norm: float, bound: float | None, clipped: float | None) -> Decision:
        """Scale to c or ``max_norm``, whichever is less; an ordinary
        norm is shown beside its bound.
        """
        threshold = _least(bound if clipped is None else clipped, self.max_norm)
        target = _least(clipped, self.max_norm)
        if target is None:
            return Decision(threshold, 1.0)
        if not self.as_published:
            return Decision(threshold, bounded(norm, target).coefficient)
        # The published warm-up is clip_grad_norm_, which scales from c − 1e-6
        # on; later it scales from c on.
        scales = norm > target or bound is None
        return Decision(threshold, min(1.0, target / (norm + 1e-6)) if scales else 1.0)


def _least(*bounds: float | None) -> float | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _square(x: float) -> float:
    return x * x  # where x**2 overflows it raises, and this is inf
