"""What is looked for on the first step of a fit alone: cells of the model's own,
and those whose state is severed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from lightning_gradwatch.engine.observation import Cells
from lightning_gradwatch.recurrent import Capture
from lightning_gradwatch.recurrent.capture.discovery import Discovery
from lightning_gradwatch.recurrent.capture.first_look import FirstLook
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.severed import How
from lightning_gradwatch.recurrent.capture.severed_cells import SeveredCells
from lightning_gradwatch.recurrent.capture.slots import Slots


class FirstStepSearch:
    """Puts hooks on every module for one step.

    Args:
        model: where to look.
        modules: qualified name → module that is watched; of one that is not PyTorch's
            own, the states are looked for.
        capture: takes the calls.
        is_over: asked by the hooks.
        everywhere: look for cells anywhere in the model.
        severed: look for cells whose state is severed.

    Attributes:
        first: the first number that is not finite that any module made or was sent
            back; None once the step is over.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        capture: Capture,
        is_over: FitIsOver | None,
        *,
        everywhere: bool,
        severed: bool,
    ) -> None:
        self._capture, self._everywhere = capture, everywhere
        self._discovery: Discovery | None = None
        self.first: FirstLook | None = None
        undecided = {n for n, m in modules.items() if not isinstance(m, nn.RNNBase) and Slots.of(m) is None}
        if everywhere or undecided:
            capture.loops.undecided = set(undecided)
            known = [module for name, module in modules.items() if name not in undecided]
            self.first = FirstLook(model, known, is_over)
            self._discovery = Discovery(model, known, None if everywhere else undecided, is_over)
        self._severed = SeveredCells(model, modules.values(), is_over) if severed else None

    @property
    def is_on(self) -> bool:
        """Whether cells are still looked for."""
        return self._discovery is not None

    @property
    def is_everywhere(self) -> bool:
        """Whether they are, anywhere in the model."""
        return self.is_on and self._everywhere

    def states(self) -> set[int]:
        """The numbers of the places in the graph where the states of the cells seen so far were
        made.
        """
        return set() if self._discovery is None else self._discovery.states()

    def cells(self) -> Cells:
        """Those seen so far."""
        return {} if self._discovery is None else self._discovery.cells()

    def end_severed(self, told: Collection[str]) -> Mapping[str, How]:
        """End the search for cells with a severed state. Returns how each one's is.

        Args:
            told: taps of which it is told already.
        """
        search, self._severed = self._severed, None
        if search is None:
            return {}
        severed = search.severed(told)
        search.close()
        search.hooks.raise_failure()
        cells = self.cells()
        return {name: how for name, how in severed.items() if name not in cells}

    def end(self) -> Cells:
        """End the search for cells. Returns those that it showed."""
        discovery, self._discovery = self._discovery, None
        first, self.first = self.first, None
        if discovery is None or first is None:
            return {}
        discovery.close()
        first.close()
        discovery.hooks.raise_failure()
        first.hooks.raise_failure()
        self._capture.loops.undecided.clear()
        return discovery.cells()

    def close(self) -> None:
        """Take the hooks off."""
        for search in (self._discovery, self.first, self._severed):
            if search is not None:
                search.close()
