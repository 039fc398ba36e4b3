"""Recurrent calls: how they are captured, and how their adjoint is replayed."""

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.hooks import Capture
from lightning_gradwatch.recurrent.capture.scan_taps import tap_scan
from lightning_gradwatch.recurrent.capture.stitching import stitch
from lightning_gradwatch.recurrent.capture.taps import tap
from lightning_gradwatch.recurrent.chain import Chain
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.measure.by_kind import measure_calls
from lightning_gradwatch.recurrent.measure.chain_lags import follow
from lightning_gradwatch.recurrent.measure.lags import measure_lags
from lightning_gradwatch.recurrent.measure.loop_profiles import loop_profiles
from lightning_gradwatch.recurrent.measure.profiles import profiles
from lightning_gradwatch.recurrent.measure.sweep import Sweep, sweep
from lightning_gradwatch.recurrent.scan import Scan

__all__ = [
    "Capture",
    "Chain",
    "Loop",
    "RecurrentCall",
    "Scan",
    "Sweep",
    "follow",
    "loop_profiles",
    "measure_calls",
    "measure_lags",
    "profiles",
    "stitch",
    "sweep",
    "tap",
    "tap_scan",
]
