"""What a watch is to look at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_gradwatch import arguments
from lightning_gradwatch.detect import Detector, checked_detectors
from lightning_gradwatch.events import Event

SEEN_BY = ("every_n_steps", "max_sequences", "anchors", "keep_sequences", "modules", "influence")
"""The arguments that decide what is seen: they are written down, and a replay uses the same, but
for the influence, for which it has no use."""

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


class WatchArguments:
    """The arguments that ``GradWatch`` and ``watch()`` have in common, each under its name."""

    raise_own_errors = False
    """Let errors of our own through instead of warning: for the package's tests."""

    def _take_arguments(
        self,
        *,
        modules: Literal["auto"] | list[str],
        every_n_steps: int,
        max_sequences: int | None,
        anchors: int,
        keep_sequences: bool,
        dirpath: str | Path | None,
        on_event: Callable[[Event], None] | None,
        summary: bool,
        first_word: bool,
        detectors: list[Detector] | None,
        influence: bool,
        switch: str,
        none: str,
    ) -> None:
        """Check and keep them.

        Args:
            switch: how to switch it off; ``none``: how to watch no module.

        Raises:
            ValueError: one breaks its rule.
        """
        self.every_n_steps = arguments.whole("every_n_steps", every_n_steps, switch)
        self.anchors = arguments.whole("anchors", anchors, "One anchor follows the loss of the last timestep alone.")
        if max_sequences is not None:
            remedy = "None measures every sequence of a batch."
            max_sequences = arguments.whole("max_sequences", max_sequences, remedy)
        _check_patterns(modules, none)
        self.modules: Literal["auto"] | list[str] = modules
        self.max_sequences, self.keep_sequences = max_sequences, keep_sequences
        self.dirpath, self.on_event, self.summary, self.first_word = dirpath, on_event, summary, first_word
        self.detectors, self.influence = checked_detectors(detectors), influence

    @property
    def _patterns(self) -> list[str] | None:
        """Of the names of the modules to watch; None are all."""
        return None if self.modules == "auto" else self.modules

    @property
    def _says_first_words(self) -> bool:
        return self.first_word and self.summary

    def _watch_options(self, unannounced: str = UNANNOUNCED) -> WatchOptions:
        """As one watch needs them; the detectors are copies."""
        return WatchOptions(
            patterns=self._patterns,
            find_cells=self._patterns is None,
            max_sequences=self.max_sequences,
            anchors=self.anchors,
            influence=self.influence,
            detectors=copy.deepcopy(self.detectors),
            strict=self.raise_own_errors,
            unannounced=unannounced,
        )

    def _config(self, *more: str) -> dict[str, Any]:
        """What decides what is seen, for the run log; ``more``: names of further attributes."""
        return {name: getattr(self, name) for name in (*SEEN_BY, *more)}


def _check_patterns(modules: str | Sequence[str], remedy: str) -> None:
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
