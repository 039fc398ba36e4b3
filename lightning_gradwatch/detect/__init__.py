"""Detectors: a profile or a norm in, an event out."""

from lightning_gradwatch.detect.exploding import ExplodingDetector
from lightning_gradwatch.detect.nonfinite import SweptCall, locate_nonfinite
from lightning_gradwatch.detect.norm_jump import NormJumpDetector
from lightning_gradwatch.detect.vanishing import VanishingDetector, is_vanishing

__all__ = [
    "ExplodingDetector",
    "NormJumpDetector",
    "SweptCall",
    "VanishingDetector",
    "is_vanishing",
    "locate_nonfinite",
]
