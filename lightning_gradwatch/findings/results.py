"""What a watch lets its user ask for, while it goes on and after it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lightning_gradwatch.audit import ClippingSummary
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.findings import Findings
from lightning_gradwatch.metrics import LaggedGradient, TotalGradient
from lightning_gradwatch.plain import count_of
from lightning_gradwatch.runlog.notebook import verdict_table
from lightning_gradwatch.runlog.verdict import LayerSummary


class WatchResults:
    """Of the present training, or of the last one."""

    called: ClassVar[str]
    """How users call it."""

    run_dir: Path | None
    every_n_steps: int
    _found: Findings

    def _is_over(self) -> bool:
        """Whether the training is over, be it without a word to us."""
        return False

    @property
    def events(self) -> list[Event]:
        """The events of the present training, or of the last one."""
        self._is_over()
        return self._found.events

    @property
    def verdicts(self) -> list[LayerSummary]:
        """What is to be thought of each module, layer and direction, from what was measured so far
        in the present training, or in the last.
        """
        return self._found.verdicts()

    @property
    def clipping(self) -> list[ClippingSummary]:
        """What becomes of each optimizer's gradients between the backward pass and the step, in the
        present training, as far as that is known, or in the last.
        """
        return self._found.clipping

    @property
    def lagged(self) -> dict[tuple[str, int, str], LaggedGradient]:
        """The lagged gradients accumulated over the training, by module, layer and direction."""
        return self._found.lagged

    @property
    def totals(self) -> dict[tuple[str, int, str], TotalGradient]:
        """The total gradients accumulated over the training, by module, layer and direction."""
        return self._found.totals

    def __repr__(self) -> str:
        where = "no run log" if self.run_dir is None else f"run log in {str(self.run_dir)!r}"
        results = f"{count_of(len(self.verdicts), 'verdict')}, {count_of(len(self.events), 'event')}"
        return f"<{self.called}, every {count_of(self.every_n_steps, 'step')}: {results}, {where}>"

    def _repr_html_(self) -> str:
        return verdict_table(self.called, self.verdicts, [event.severity for event in self.events])
