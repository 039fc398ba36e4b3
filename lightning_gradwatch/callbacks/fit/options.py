"""GradWatch's arguments, as one fit needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_gradwatch.callbacks.anomaly.handling import HandlingOptions
from lightning_gradwatch.engine.options import WatchOptions

SEEN_BY = ("every_n_steps", "max_sequences", "anchors", "keep_sequences", "modules")
"""The arguments that decide what is seen: they are written down, and a replay uses the same."""


@dataclass(frozen=True)
class FitOptions:
    """GradWatch's arguments, as one fit needs them.

    Args:
        config: those of :data:`SEEN_BY`, for the run log and the bundles.
    """

    every_n_steps: int
    progress_bar: bool
    watch: WatchOptions
    handling: HandlingOptions
    config: Mapping[str, Any]


def check_patterns(modules: str | Sequence[str]) -> None:
    """See that ``modules`` is ``"auto"`` or names at least one pattern.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(modules, str) and modules != "auto":
        raise ValueError(
            f'`modules` must be "auto" or a list of name patterns; found {modules!r}. Use modules=[{modules!r}].'
        )
    if not modules:
        raise ValueError(
            f'`modules` must name at least one pattern; found {modules!r}. Use modules="auto" to watch every recurrent '
            "module, or GradWatch(enabled=False) to watch none."
        )
