"""Recurrent calls: how they are captured, and how their adjoint is replayed."""

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture import Capture
from lightning_gradwatch.recurrent.chain import Chain
from lightning_gradwatch.recurrent.lags import measure_lags
from lightning_gradwatch.recurrent.loop import Loop, loop_profiles
from lightning_gradwatch.recurrent.measure import measure_calls, profiles
from lightning_gradwatch.recurrent.stitch import stitch
from lightning_gradwatch.recurrent.sweep import Sweep, sweep
from lightning_gradwatch.recurrent.tap import tap
from lightning_gradwatch.recurrent.trail import follow

__all__ = [
    "Capture",
    "Chain",
    "Loop",
    "RecurrentCall",
    "Sweep",
    "follow",
    "loop_profiles",
    "measure_calls",
    "measure_lags",
    "profiles",
    "stitch",
    "sweep",
    "tap",
]
