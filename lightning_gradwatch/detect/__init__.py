"""Detectors: a profile or a norm in, an event out."""

from lightning_gradwatch.detect.exploding import ExplodingDetector
from lightning_gradwatch.detect.nonfinite import Place, locate_nonfinite
from lightning_gradwatch.detect.nonfinite_call import SweptCall
from lightning_gradwatch.detect.nonfinite_loop import LoopPlaces
from lightning_gradwatch.detect.norm_jump import NormJumpDetector
from lightning_gradwatch.detect.vanishing import VanishingDetector, is_vanishing

__all__ = [
    "ExplodingDetector",
    "LoopPlaces",
    "NormJumpDetector",
    "Place",
    "SweptCall",
    "VanishingDetector",
    "is_vanishing",
    "locate_nonfinite",
]
