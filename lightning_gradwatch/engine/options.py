"""What a watch is to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gradwatch.detect import Detector


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a watch is to look at.

    Args:
        patterns: of the names of the modules to watch; None are all.
        find_cells: look for cells of the model's own on the first step.
        max_sequences: swept on a sampled step; None takes all.
        anchors: of each lagged profile.
        detectors: of the user's own, which judge the profiles beside the built-in
            ones. They are of this watch alone.
        strict: let an error of our own about one loop through, instead of a warning.
    """

    patterns: Sequence[str] | None = None
    find_cells: bool = True
    max_sequences: int | None = 8
    anchors: int = 4
    detectors: Sequence[Detector] = ()
    strict: bool = True
