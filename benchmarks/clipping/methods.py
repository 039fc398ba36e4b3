"""The ways of clipping that the benchmarks compare: none, PyTorch's, three packages', and AdaptiveClip's policies."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.clip import ClipPolicy, TensorPolicy
from lightning_gradwatch.clip.step.groups import PolicyGroups
from lightning_gradwatch.clip.step.measure_and_clip import clip, measure, whole_norm
from lightning_gradwatch.recurrent.capture.direct_norm import DirectNorms

Act = Callable[[Tensor], object]
"""What is done between the backward pass and the optimizer's step; it knows the model, and is told the loss."""


@dataclass(frozen=True)
class Method:
    """One setting of one way of clipping. The settings of a ``family`` compete for its best."""

    family: str
    setting: str
    make: Callable[[nn.Module, torch.optim.Optimizer], Act]
    ours: bool = False


def adaptive_clip(policy: str | ClipPolicy | TensorPolicy) -> Callable[[nn.Module, torch.optim.Optimizer], Act]:
    """AdaptiveClip's own step without a Trainer: measure, skip what is not finite, decide, act."""

    def make(module: nn.Module, optimizer: torch.optim.Optimizer) -> Act:
        groups = PolicyGroups(policy, None, None)
        groups.begin(module, [optimizer])
        state, direct = groups.new_state(), DirectNorms()
        direct.attach(module)

        def act(loss: Tensor) -> None:
            own = groups.of(module, optimizer, state)
            measured, _, mean = measure(own, deferring=False, losses=[loss.detach()], direct=direct)
            if not math.isfinite(whole_norm(measured)):
                for parameter in module.parameters():
                    parameter.grad = None
                return
            for group, norms in zip(own, measured, strict=True):
                clip(group, norms, deferring=False, loss=mean)

        act.close = direct.detach  # type: ignore[attr-defined]
        return act

    return make


def close(act: Act) -> None:
    """Take its hooks off, if it has any."""
    getattr(act, "close", lambda: None)()


def nothing(module: nn.Module, optimizer: torch.optim.Optimizer) -> Act:
    """No clipping."""
    return lambda loss: None


def fixed_norm(bound: float) -> Callable[[nn.Module, torch.optim.Optimizer], Act]:
    """PyTorch's ``clip_grad_norm_``."""
    return lambda module, optimizer: lambda loss: nn.utils.clip_grad_norm_(module.parameters(), bound)


def zclip(**options: Any) -> Callable[[nn.Module, torch.optim.Optimizer], Act]:
    """PyPI's zclip."""

    def make(module: nn.Module, optimizer: torch.optim.Optimizer) -> Act:
        from zclip import ZClip

        published = ZClip(**options)
        return lambda loss: published.step(module)

    return make


def autoclip(kind: str, **options: Any) -> Callable[[nn.Module, torch.optim.Optimizer], Act]:
    """PyPI's autoclip: ``QuantileClip`` or ``StandardClip``."""

    def make(module: nn.Module, optimizer: torch.optim.Optimizer) -> Act:
        import autoclip.torch

        step = getattr(autoclip.torch, kind)(module.parameters(), **options).step
        return lambda loss: step()

    return make


def smartclip(kind: str, **options: Any) -> Callable[[nn.Module, torch.optim.Optimizer], Act]:
    """PyPI's smartclip: ``AutoClip``, ``ZScoreClip`` or ``AGC``."""

    def make(module: nn.Module, optimizer: torch.optim.Optimizer) -> Act:
        import smartclip

        with contextlib.redirect_stdout(io.StringIO()):
            clipper = getattr(smartclip, kind)(**options)
        return lambda loss: smartclip.apply(module, clipper)

    return make


def methods() -> Iterator[Method]:
    """Rivals with a grid of settings each, the package's defaults among them; ours as they come."""
    yield Method("none", "", nothing)
    for bound in (0.1, 0.3, 1.0, 3.0):
        yield Method("fixed norm", f"{bound:g}", fixed_norm(bound))
    yield Method("zclip", "default", zclip())
    yield Method("zclip", "max_grad_norm=None", zclip(max_grad_norm=None))
    yield Method("autoclip", "QuantileClip", autoclip("QuantileClip"))
    yield Method("autoclip", "QuantileClip, global", autoclip("QuantileClip", global_threshold=True))
    yield Method("autoclip", "StandardClip", autoclip("StandardClip"))
    yield Method("smartclip", "AutoClip", smartclip("AutoClip"))
    yield Method(
        "smartclip", "AutoClip 50 %", smartclip("AutoClip", mode="percentile", percentile=50.0, history="window")
    )
    yield Method("smartclip", "ZScoreClip", smartclip("ZScoreClip"))
    yield Method("smartclip", "AGC", smartclip("AGC"))
    for policy in ("spike", "norm", "autoclip", "zclip", "agc", "adagc", "aggc"):
        yield Method(f"ours: {policy}", "default", adaptive_clip(policy), ours=True)
