"""Repeats the training step of a bundle, and looks for the operation where it went wrong."""

from lightning_gradwatch.replay.build import build_module, load_target
from lightning_gradwatch.replay.compare import differences
from lightning_gradwatch.replay.rerun import rerun, watched_events
from lightning_gradwatch.replay.search import find_origin

__all__ = ["build_module", "differences", "find_origin", "load_target", "rerun", "watched_events"]
