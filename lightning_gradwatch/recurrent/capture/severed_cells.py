"""Cells of one's own whose state is detached at every step: no output comes back
as an input, only its values do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.recurrent.capture.compiled import is_compiling
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.loops import tensors
from lightning_gradwatch.recurrent.capture.modules import beside
from lightning_gradwatch.recurrent.capture.severed import FEW, comes_from


class SeveredCells:
    """Watches every module without a recurrent one inside for one training step. Of a module that
    is given something without a graph it holds what its last call was given and made of the same
    shape, detached.

    Attributes:
        failure: an error of our own in a hook, kept for whoever ends the search
            instead of breaking the forward.
    """

    def __init__(self, model: nn.Module, known: Iterable[nn.Module], is_over: FitIsOver | None = None) -> None:
        self._is_over = is_over or FitIsOver()
        self.failure: Exception | None = None
        self._calls: Counter[str] = Counter()
        self._detached: Counter[str] = Counter()
        self._last: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self._names = beside(model, tuple(known), holding=False)
        self._handles = [module.register_forward_hook(self._after, with_kwargs=True) for module in self._names]

    def found(self) -> dict[str, str]:
        """Module → in a sentence, how its state is severed."""
        return {
            name: f"In each of its {self._calls[name]} calls the state that comes in is that of the call before, but detached."
            for name, count in self._detached.items()
            if self._calls[name] >= FEW and count == self._calls[name] - 1
        }

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._last.clear()

    def _after(
        self, module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any = None
    ) -> None:
        # Taken off by a hook before it, it is called once more, and without ``kwargs``.
        if self._is_over() or self.failure is not None or not torch.is_grad_enabled() or is_compiling():
            return
        try:
            self._compare(self._names[module], [*tensors(inputs), *tensors(kwargs.values())], tensors((outputs,)))
        except Exception as error:  # whatever it is, it is ours and must not break the user's forward
            self.failure = error

    def _compare(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self._calls[name] += 1
        given = [tensor.detach() for tensor in inputs if not tensor.requires_grad and tensor.is_floating_point()]
        before, made = self._last.pop(name, ([], []))
        if any(self._is_new(state, before) and comes_from(state, last) for state in given for last in made):
            self._detached[name] += 1
        shapes = {tensor.shape for tensor in given}
        kept = [tensor.detach() for tensor in outputs if tensor.requires_grad and tensor.shape in shapes]
        if kept:
            self._last[name] = given, kept

    @staticmethod
    def _is_new(state: Tensor, before: list[Tensor]) -> bool:
        """Whether it was not given to the call before as well: a module that changes nothing
        yet gives back what it was given.
        """
        return not any(state.shape == other.shape and torch.equal(state, other) for other in before)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert, as a copy of a capture is."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(nn.Module(), ())
