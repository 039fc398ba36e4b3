"""Clipping of each tensor by its own earlier norms."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.by_name import ByName
from lightning_gradwatch.clip.scaling_policy import ScalingPolicy
from lightning_gradwatch.clip.tensor_policy import share_of

_ABSURD = 100.0  # what lies under the warm-up's median divided by this is no level


class AdaGC(ScalingPolicy):
    """Bound each parameter tensor's gradient by λ times a running mean γ_i of its own norms.

    Wang, Li, Chen et al. (2025), "AdaGC: Enhancing LLM pretraining stability via adaptive gradient
    clipping", version 2, algorithm 1, as the authors' PyTorch code has it
    (github.com/lishuai-97/AdaGC). For the first ``warmup_steps`` all gradients are scaled by min(1,
    c/(N + ε)), and γ_i is the least clipped ‖g_i‖ so far. After that, if ‖g_i‖ > λγ_i: g_i ←
    g_i·λγ_i/(‖g_i‖ + ε) and n = λγ_i, else n = ‖g_i‖; then γ_i ← βγ_i + (1−β)n. The first norm of a
    tensor that is trained later is its γ_i. After warm-up it does not preserve the direction of the
    whole gradient, only of each tensor's.

    ``as_published`` is this rule. The hardened form differs where that breaks:

    =======================================  ==================================  =========================================
    input                                    as published                        hardened
    =======================================  ==================================  =========================================
    a zero gradient in warm-up               γ_i = 0, and so is every later g_i  it enters nothing
    a gradient of 1e-20 in warm-up           γ_i grows by 0.04 % a step from it  under 1 % of the median it enters nothing
    zero gradients for a while               γ_i → 0; what follows is clipped    they enter nothing
    an inf in warm-up                        all become 0 or NaN, and γ_i is 0   the step leaves state and gradients alone
    one NaN or inf after it                  γ_i is NaN or inf for ever          the step leaves state and gradients alone
    norms of 1e-9                            the ε shrinks them                  no constant: scale-equivariant but c
    =======================================  ==================================  =========================================

    Args:
        max_norm: c, in the norm's unit; None for no bound during warm-up.
        clip_factor: λ.
        beta: β, the mean's memory.
        warmup_steps: steps before a tensor's own bound holds.
        eps: ε of the published form.
        as_published: follow the paper where it breaks, too.
    """  # noqa: W505  # a table keeps its width

    _arguments = ("max_norm", "clip_factor", "beta", "warmup_steps", "eps", "as_published")

    def __init__(
        self,
        max_norm: float | None = 1.0,
        clip_factor: float = 1.04,
        beta: float = 0.99,
        warmup_steps: int = 100,
        eps: float = 1e-6,
        as_published: bool = False,
    ) -> None:
        number = functools.partial(arguments.number, owner=self)
        self.max_norm = None
        if max_norm is not None:
            self.max_norm = arguments.positive(
                "max_norm", max_norm, "Use None for no bound during warm-up.", owner=self
            )
        remedy = "The paper advises 1.04."
        self.clip_factor = number("clip_factor", clip_factor, lambda f: 1 <= f < math.inf, "≥ 1 and finite", remedy)
        self.beta = number("beta", beta, lambda f: 0 <= f < 1, "in [0, 1)", "The paper advises 0.99.")
        self.warmup_steps = arguments.whole("warmup_steps", warmup_steps, "The paper advises 100.", owner=self)
        self.eps = number("eps", eps, lambda f: f >= 0, "≥ 0", "Leave it at 1e-6.")
        self.as_published = as_published
        self._levels = ByName(torch.tensor(math.inf))  # γ
        self._warmup = self._no_warmup()
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """γ by name, where there is one yet; the warm-up's norms (0: none) until
        it is over; the number of steps.
        """
        return {
            "levels": self._levels.state_dict(known=True),
            "warmup": self._warmup.state_dict(),
            "steps": self._steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._levels.load_state_dict(state_dict["levels"])
        self._warmup.load_state_dict(state_dict["warmup"])
        self._steps = state_dict["steps"]

    def _judge(self, names: Sequence[str], norms: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        coefficients_of = self._warm_up if self._steps < self.warmup_steps else self._by_levels
        coefficients = coefficients_of(names, norms, norm.to(norms))
        self._steps += 1
        return coefficients, share_of([coefficients < 1])

    def _warm_up(self, names: Sequence[str], norms: Tensor, total: Tensor) -> Tensor:
        """What all tensors are multiplied by; their clipped norms are collected."""
        finite = total.isfinite() | self.as_published
        eps = self.eps if self.as_published else 0.0
        bound = math.inf if self.max_norm is None else self.max_norm
        scale = bound / (total + eps)
        coefficients = torch.where(finite & (scale < 1.0), scale, 1.0).expand_as(norms)
        clipped = coefficients * norms
        if self.as_published:
            levels = self._levels.take(names, norms)
            self._levels.put(names, torch.where((clipped < levels) | levels.isposinf(), clipped, levels))
            return coefficients
        collected = self._warmup.take(names, norms).clone()
        collected[:, self._steps] = torch.where(finite, clipped, 0.0)
        self._warmup.put(names, collected)
        if self._steps + 1 == self.warmup_steps:
            self._levels.put(*self._warmup.reduce(_least_ordinary))
            self._warmup = self._no_warmup()
        return coefficients

    def _by_levels(self, names: Sequence[str], norms: Tensor, total: Tensor) -> Tensor:
        """What each tensor is multiplied by; its γ moves."""
        known = self._levels.take(names, norms)
        levels = torch.where(known.isposinf(), norms, known)  # first trained after warm-up
        bounds = self.clip_factor * levels
        beyond = norms > bounds
        n = torch.where(beyond, bounds, norms)
        moved = self.beta * levels + (1 - self.beta) * n
        if self.as_published:
            self._levels.put(names, moved)
            return torch.where(beyond, bounds / (norms + self.eps), 1.0)
        finite = total.isfinite()
        self._levels.put(names, torch.where(finite & (norms > 0), moved, known))
        return torch.where(finite & beyond, bounds / norms, 1.0)

    def _no_warmup(self) -> ByName:
        return ByName(torch.zeros(0 if self.as_published else self.warmup_steps))


def _least_ordinary(collected: Tensor) -> Tensor:
    """Of each row the least entry that is not far under its median; zeros are
    none, and a row of them gives inf.
    """
    known = collected > 0
    ordered = torch.where(known, collected, math.inf).sort(dim=1).values
    median = ordered.gather(1, ((known.sum(1, keepdim=True) - 1) // 2).clamp(min=0))
    return torch.where(ordered >= median / _ABSURD, ordered, math.inf).amin(dim=1)
