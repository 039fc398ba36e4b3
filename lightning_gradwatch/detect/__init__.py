"""Detectors: a profile or a norm in, an event out."""

from lightning_gradwatch.detect.baseline import Baseline
from lightning_gradwatch.detect.context import Context, bad_loss
from lightning_gradwatch.detect.detector import Detector, checked_detectors
from lightning_gradwatch.detect.diverged import DivergenceDetector
from lightning_gradwatch.detect.episode import Episodes
from lightning_gradwatch.detect.exploding import ExplodingDetector
from lightning_gradwatch.detect.loss_scale import Multiplied, multiplied
from lightning_gradwatch.detect.nonfinite import NonfiniteSource, locate_nonfinite
from lightning_gradwatch.detect.nonfinite_call import CallSource
from lightning_gradwatch.detect.nonfinite_loop import LoopSource
from lightning_gradwatch.detect.nonfinite_scan import ScanSource
from lightning_gradwatch.detect.norm_jump import NormJumpDetector
from lightning_gradwatch.detect.norm_jumps import NormJumps
from lightning_gradwatch.detect.one_sequence import OneSequenceDetector
from lightning_gradwatch.detect.recurrent_weights import RecurrentWeights
from lightning_gradwatch.detect.saturation import SaturationDetector
from lightning_gradwatch.detect.scale_search import ScaleSearch
from lightning_gradwatch.detect.scan_mismatch import ScanMismatchDetector
from lightning_gradwatch.detect.short_reach import ShortReachDetector
from lightning_gradwatch.detect.unchanged_weights import UnchangedWeights, held_by
from lightning_gradwatch.detect.vanishing import VanishingDetector, is_vanishing
from lightning_gradwatch.detect.weights import WeightWatch
from lightning_gradwatch.detect.zero_gradient import ZeroGradient

__all__ = [
    "Baseline",
    "CallSource",
    "Context",
    "Detector",
    "DivergenceDetector",
    "Episodes",
    "ExplodingDetector",
    "LoopSource",
    "Multiplied",
    "NonfiniteSource",
    "NormJumpDetector",
    "NormJumps",
    "OneSequenceDetector",
    "RecurrentWeights",
    "SaturationDetector",
    "ScaleSearch",
    "ScanMismatchDetector",
    "ScanSource",
    "ShortReachDetector",
    "UnchangedWeights",
    "VanishingDetector",
    "WeightWatch",
    "ZeroGradient",
    "bad_loss",
    "checked_detectors",
    "held_by",
    "is_vanishing",
    "locate_nonfinite",
    "multiplied",
]
