"""The first word: how far the gradient reaches, said as soon as it has been measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from lightning_gradwatch.events import Event, EventKind, Severity
from lightning_gradwatch.findings.swapped_axes import Axes, axes_of, doubt
from lightning_gradwatch.plain import plain
from lightning_gradwatch.runlog.measures import Record
from lightning_gradwatch.runlog.summary import LayerSummary, summarise

_RANKS = {Severity.CRITICAL: 0, Severity.WARNING: 1, Severity.INFO: 2}


class FirstWord:
    """Of one training: each module once, when it has first been sampled, or was found to be one
    that no gradient flows back through.

    Attributes:
        doubts: of modules that may have taken the batch for time, what speaks for it, in a sentence
            each.
    """

    def __init__(self) -> None:
        self._fresh: list[Record] = []
        self._axes: set[Axes] = set()
        self._severed: list[Event] = []
        self._heard: dict[str, int] = {}  # when
        self._said: set[str] = set()
        self.doubts: list[str] = []

    def hear(self, records: Iterable[Record], batch: Any = None) -> None:
        """The records of a sampled step, and what the training step was given."""
        fresh = [record for record in records if self._is_first(record)]
        if fresh:
            self._fresh += fresh
            self._axes |= axes_of(batch)

    def _is_first(self, record: Record) -> bool:
        """Whether it is of the first step that its module was sampled in: later ones are not kept,
        though nobody may ask for a word.
        """
        module = record["module"]
        return module not in self._said and self._heard.setdefault(module, record["step"]) == record["step"]

    def hear_event(self, event: Event) -> None:
        """An event: of some modules there is nothing else, as their states cannot be followed."""
        if event.kind == EventKind.NO_GRADIENT_THROUGH_TIME:
            self._severed.append(event)

    def lines(self, events: Iterable[Event], loaded: Callable[[], int | None] = lambda: None) -> list[str]:
        """A line for each module of which something is known for the first time; nothing where
        there is none.

        Args:
            events: so far.
            loaded: how many examples the loader puts into a batch, if that is known.
        """
        lines = self._of_samples(events, loaded()) if self._fresh else []
        self._said |= set(self._heard)
        new = {str(event.module): event for event in self._severed if event.module not in self._said}
        self._severed, self._said = [], self._said | set(new)
        lines += [f"GradWatch, step {event.step}: {module}. {event.message}" for module, event in new.items()]
        return [plain(line) for line in lines]

    def _of_samples(self, events: Iterable[Event], loaded: int | None) -> list[str]:
        fresh, self._fresh = self._fresh, []
        verdicts = summarise(fresh, [event.to_record() for event in events])
        measured = (layer for layer in verdicts if layer.layer is not None)
        step = min(record["step"] for record in fresh)
        lines = [
            f"GradWatch, step {step}: {_line(list(of))}" for _, of in groupby(measured, key=lambda one: one.module)
        ]
        known = " ".join(lines)
        axes, self._axes = self._axes, set()
        doubts = {one["module"]: doubt(one, loaded, axes) for one in fresh if loaded and "batch_first=" not in known}
        new = [plain(said) for said in doubts.values() if said]
        self.doubts += new
        return lines + [f"GradWatch, step {step}: {said}" for said in new]


def _line(layers: Sequence[LayerSummary]) -> str:
    """Of several layers and directions that in the greatest trouble, or which reaches least far."""
    worst = min(layers, key=_order)
    which = ""
    if len(layers) > 1:
        least = all(layer.horizon is not None and _rank(layer) == _rank(worst) for layer in layers)
        which = f"; {'the least far-reaching' if least else 'the first to look at'} of {len(layers)}"
    sentence = worst.sentence.removeprefix("It was the last sample.").lstrip()  # there will be others
    return f"{worst.place} ({worst.kind}{which}). {sentence}".rstrip()


def _order(layer: LayerSummary) -> tuple[int, bool, bool, int]:
    return _rank(layer), layer.horizon is None, layer.horizon_censored, layer.horizon or 0


def _rank(layer: LayerSummary) -> int:
    return 3 if layer.severity is None else _RANKS[layer.severity]
