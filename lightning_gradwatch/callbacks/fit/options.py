"""GradWatch's arguments, as one fit needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_gradwatch.callbacks.anomaly.handling import HandlingOptions
from lightning_gradwatch.engine.options import WatchOptions


@dataclass(frozen=True)
class FitOptions:
    """GradWatch's arguments, as one fit needs them.

    Args:
        first_word: say how far the gradient reaches once it has been measured.
        config: those that decide what is seen, for the run log and the bundles.
    """

    every_n_steps: int
    progress_bar: bool
    watch: WatchOptions
    handling: HandlingOptions
    config: Mapping[str, Any]
    first_word: bool = False
