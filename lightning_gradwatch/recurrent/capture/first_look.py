"""The first number that is not finite in any module, on the one step on which it is not
known yet which of them are cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.loops import tensors
from lightning_gradwatch.recurrent.capture.modules import beside
from lightning_gradwatch.recurrent.capture.search_hooks import SearchHooks
from lightning_gradwatch.recurrent.graph.between import nodes_until
from lightning_gradwatch.recurrent.pause import is_paused
from lightning_gradwatch.recurrent.weakly_held import WeaklyHeld


@dataclass(frozen=True, slots=True)
class NonfiniteForward(WeaklyHeld):
    """A number that is not finite, and the forward that made it of finite inputs.

    Args:
        module: qualified name.
        call: how many times it had been called in the step before.
        sequence: row of the tensor; None where it has none.
        value: NaN or an infinity.
        nodes: the operations of its forward.
    """

    module: str
    call: int
    sequence: int | None
    value: float
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Arrived(WeaklyHeld):
    """A gradient that is not finite where it arrived at a module's output.

    Args:
        module, call, sequence, value: as above.
        node: the place in the graph.
        later: call number, norm of the gradient and place in the graph of the same module's
            call that had one just before.
    """

    module: str
    call: int
    sequence: int | None
    value: float
    node: Node
    later: tuple[int, float, Node] | None


class FirstLook:
    """Looks at what every module makes, and at the gradients that arrive there. A
    host sync for each: for one step.

    Args:
        model: of whose modules; TorchScript takes no hooks.
        known: those that are watched anyway, with all inside.
        is_over: asked by the hooks, for where nobody said that the fit is over.

    Attributes:
        forward: the first output that is not finite though the inputs are.
        backward: the first gradient that is not, as seen from the loss.
        hooks: those on the modules.
    """

    def __init__(self, model: nn.Module, known: Collection[nn.Module], is_over: FitIsOver | None = None) -> None:
        self.forward: NonfiniteForward | None = None
        self.backward: Arrived | None = None
        self._calls: Counter[str] = Counter()
        self._last: dict[str, tuple[int, float, Node]] = {}
        self._names = beside(model, known, holding=True)
        self.hooks = SearchHooks(self._names, self._after, is_over, around=True)

    def close(self) -> None:
        """Take the hooks off and let go of the graph."""
        self.hooks.close()
        self._last.clear()
        self.forward = self.backward = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert, as a copy of a capture is."""
        return {"forward": None, "backward": None, "hooks": self.hooks, "_names": {}, "_last": {}}

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        self._look(self._names[module], tensors((*inputs, *kwargs.values())), tensors((outputs,)))

    def _look(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        call = self._calls[name]
        self._calls[name] += 1
        for tensor in made:
            if self.forward is None:
                bad = _first_bad(tensor)
                if bad is not None and all(_first_bad(one) is None for one in given):
                    stops = {one.grad_fn for one in given if one.grad_fn is not None}
                    self.forward = NonfiniteForward(name, call, *bad, tuple(nodes_until([tensor.grad_fn], stops)))
            node = tensor.grad_fn
            if node is not None:
                self._listen(name, call, node, tensor.output_nr)

    def _listen(self, name: str, call: int, node: Node, number: int) -> None:
        def arrives(gradients: Sequence[Tensor | None]) -> None:
            gradient = gradients[number]
            if gradient is not None and self.backward is None and self.hooks.is_open and not is_paused():
                self._arrives(name, call, node, gradient)

        node.register_prehook(arrives)  # pyright: ignore[reportArgumentType]

    def _arrives(self, name: str, call: int, node: Node, gradient: Tensor) -> None:
        bad = _first_bad(gradient)
        if bad is not None:
            self.backward = Arrived(name, call, *bad, node, self._last.get(name))
        else:
            self._last[name] = call, float(gradient.detach().double().norm()), node


def _first_bad(tensor: Tensor) -> tuple[int | None, float] | None:
    """Row and value of the first entry that is not finite."""
    values = tensor.detach()
    if not values.is_floating_point() or values.layout != torch.strided or values.is_nested:
        return None
    bad = ~values.isfinite()
    if not bool(bad.any()):
        return None
    at = torch.nonzero(bad)[0].tolist()
    return (at[0] if len(at) > 1 else None), float(values[tuple(at)])
