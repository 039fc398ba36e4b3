"""What a watch is to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gradwatch.detect import Detector

SEEN_BY = ("every_n_steps", "max_sequences", "anchors", "keep_sequences", "modules")
"""The arguments that decide what is seen: they are written down, and a replay uses the same."""

UNANNOUNCED = "its backward pass went past Lightning (use self.manual_backward(loss)); no lags were measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """What a watch is to look at.

    Args:
        patterns: of the names of the modules to watch; None are all.
        find_cells: look for cells of the model's own on the first step.
        max_sequences: swept on a sampled step; None takes all.
        anchors: of each lagged profile.
        influence: measure the gradients of fused modules' inputs as well.
        detectors: of the user's own, which judge the profiles beside the built-in
            ones. They are of this watch alone.
        strict: let an error of our own about one loop through, instead of a warning.
        unannounced: why there are no lags of a backward pass of which nothing was said before.
    """

    patterns: Sequence[str] | None = None
    find_cells: bool = True
    max_sequences: int | None = 8
    anchors: int = 4
    influence: bool = False
    detectors: Sequence[Detector] = ()
    strict: bool = True
    unannounced: str = UNANNOUNCED


def check_patterns(modules: str | Sequence[str], remedy: str) -> None:
    """See that ``modules`` is ``"auto"`` or names at least one pattern.

    Args:
        remedy: how to watch none.

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
            f"module, or {remedy}."
        )
