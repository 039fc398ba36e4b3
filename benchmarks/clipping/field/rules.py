"""The rules that are compared: each family with the settings that it may choose from on the tuning seeds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from benchmarks.clipping.methods import Method, adaptive_clip, autoclip, fixed_norm, nothing, smartclip, zclip
from lightning_gradwatch.callbacks.adaptive_clip import AdaptiveClip
from lightning_gradwatch.clip import AGC, AGGC, AdaGC

OURS = "AdaptiveClip()"


def rules() -> Iterator[Method]:
    """Packages by their own code; AdaGC, AGGC and AGC by our policies; ours as it comes."""
    yield Method("none", "", nothing)
    for bound in (0.1, 0.3, 1.0, 3.0, 10.0):
        yield Method("fixed norm", f"{bound:g}", fixed_norm(bound))
    yield Method("zclip", "default", zclip())
    yield Method("zclip", "no fixed bound", zclip(max_grad_norm=None))
    yield Method("autoclip", "by parameter", autoclip("QuantileClip"))
    yield Method("autoclip", "global", autoclip("QuantileClip", global_threshold=True))
    yield Method("smartclip", "AutoClip", smartclip("AutoClip"))
    yield Method("smartclip", "ZScoreClip", smartclip("ZScoreClip"))
    yield Method("AdaGC", "default", adaptive_clip(AdaGC()))
    yield Method("AdaGC", "no bound in warm-up", adaptive_clip(AdaGC(None)))
    yield Method("AGGC", "0.5 to 2", adaptive_clip(AGGC()))
    yield Method("AGGC", "0.5 to 1.1", adaptive_clip(AGGC(high=1.1)))
    yield Method("AGC", "0.01", adaptive_clip(AGC()))
    yield Method("AGC", "0.1", adaptive_clip(AGC(0.1)))
    yield Method(
        OURS, "default", adaptive_clip(inspect.signature(AdaptiveClip).parameters["policy"].default), ours=True
    )
