"""See where a recurrent network's gradient vanishes or explodes while it
trains, and clip it adaptively.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gradwatch.callbacks.adaptive_clip import AdaptiveClip
    from lightning_gradwatch.callbacks.grad_watch import AnomalyError, GradWatch
    from lightning_gradwatch.callbacks.start_finder import StartFinder
    from lightning_gradwatch.clip import AGC, AGGC, AdaGC, AutoClip, ClipPolicy, Norm, Spike, TensorPolicy, Value, ZClip
    from lightning_gradwatch.clip.step.nonfinite_step import NonFiniteGradientError
    from lightning_gradwatch.detect import Detector
    from lightning_gradwatch.events import Event, EventKind, Moment, Severity
    from lightning_gradwatch.outside.clip_adaptively import clip_adaptively
    from lightning_gradwatch.outside.loop_watch import watch
    from lightning_gradwatch.profile import Profile
    from lightning_gradwatch.recurrent.capture.scan_taps import tap_scan
    from lightning_gradwatch.recurrent.capture.taps import tap
    from lightning_gradwatch.runlog.reader import load_run
    from lightning_gradwatch.starts import Comparison, compare_starts, initialise_

__version__ = "0.1.0"

_HOMES = {
    "AGC": "clip",
    "AGGC": "clip",
    "AdaGC": "clip",
    "AdaptiveClip": "callbacks.adaptive_clip",
    "AnomalyError": "callbacks.grad_watch",
    "AutoClip": "clip",
    "ClipPolicy": "clip",
    "Comparison": "starts",
    "Detector": "detect",
    "Event": "events",
    "EventKind": "events",
    "GradWatch": "callbacks.grad_watch",
    "Moment": "events",
    "NonFiniteGradientError": "clip.step.nonfinite_step",
    "Norm": "clip",
    "Profile": "profile",
    "Severity": "events",
    "Spike": "clip",
    "StartFinder": "callbacks.start_finder",
    "TensorPolicy": "clip",
    "Value": "clip",
    "ZClip": "clip",
    "clip_adaptively": "outside.clip_adaptively",
    "compare_starts": "starts",
    "initialise_": "starts",
    "load_run": "runlog.reader",
    "tap": "recurrent.capture.taps",
    "tap_scan": "recurrent.capture.scan_taps",
    "watch": "outside.loop_watch",
}

__all__ = [
    "AGC",
    "AGGC",
    "AdaGC",
    "AdaptiveClip",
    "AnomalyError",
    "AutoClip",
    "ClipPolicy",
    "Comparison",
    "Detector",
    "Event",
    "EventKind",
    "GradWatch",
    "Moment",
    "NonFiniteGradientError",
    "Norm",
    "Profile",
    "Severity",
    "Spike",
    "StartFinder",
    "TensorPolicy",
    "Value",
    "ZClip",
    "clip_adaptively",
    "compare_starts",
    "initialise_",
    "load_run",
    "tap",
    "tap_scan",
    "watch",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that reading a run log
    imports neither torch nor Lightning.
    """
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
