"""How much the loss sends to the outputs of fused recurrent modules, told by hooks on these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.capture.compiled import must_not_break
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver


class DirectNorms:
    """Attached to a model, it adds up for each ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` the squared
    norms of the gradients that arrive at its output and its last hidden state.

    A call that goes on from a state with a gradient is a part of a longer sequence: what arrives at
    its output is not direct, and nothing is told of its module.
    """

    def __init__(self, is_over: FitIsOver | None = None) -> None:
        self._is_over = is_over or FitIsOver()
        self._handles: list[RemovableHandle] = []
        self._recurrent: dict[int, nn.Module] = {}
        self._squares: dict[nn.Module, Tensor] = {}
        self._parts: set[nn.Module] = set()

    def attach(self, model: nn.Module) -> None:
        """Put a hook on each module; none on a model of which something is compiled, whose graph
        would change by it.
        """
        self.detach()
        if any(getattr(module, way, None) is not None for module in model.modules() for way in _COMPILED):
            return
        for module in model.modules():
            if isinstance(module, nn.RNNBase) and not isinstance(module, torch.jit.ScriptModule):
                self._handles.append(module.register_forward_hook(self._after_forward, with_kwargs=True))
                own = {id(weight): module for name, weight in module.named_parameters() if "weight_hh" in name}
                self._recurrent.update(own)

    def detach(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recurrent.clear()
        self._squares.clear()
        self._parts.clear()

    def recurrent(self, parameters: Iterable[Tensor]) -> list[int]:
        """Which of the parameters are recurrent weights of a module, by their places."""
        return [place for place, parameter in enumerate(parameters) if id(parameter) in self._recurrent]

    def take(self, weights: Iterable[Tensor]) -> Tensor | None:
        """The norm of what has arrived at the modules of these recurrent weights since it was last
        taken, with the loss's scale in it; a scalar on the device, or None where it is not known.
        """
        modules = {self._recurrent[id(weight)]: None for weight in weights}
        parts = self._parts.intersection(modules)
        self._parts -= parts
        squares = [square for module in modules if (square := self._squares.pop(module, None)) is not None]
        if parts or not squares:
            return None
        return torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert: a copied model carries the hooks along, and they do nothing there."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()

    def _after_forward(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if must_not_break() or not self._handles or not torch.is_grad_enabled() or self._is_over():
            return
        try:
            state = kwargs.get("hx", inputs[1] if len(inputs) > 1 else None)
            if any(one.grad_fn is not None for one in _tensors(state)):
                self._parts.add(module)
            for tensor in (_tensors(outputs[0])[0], _tensors(outputs[1])[0]):
                if tensor.requires_grad:
                    tensor.register_hook(_Arrival(self, module))
        except Exception:  # outputs of a subclass that has a form of its own: its growth is not known
            self._parts.add(module)

    def arrived(self, module: nn.Module, gradient: Tensor) -> None:
        """A gradient has arrived at the output of a module."""
        if not self._handles or self._is_over():
            return
        wide = torch.promote_types(gradient.dtype, torch.float32)
        square = torch.linalg.vector_norm(gradient.detach(), dtype=wide).square()  # pyright: ignore[reportUnknownMemberType]
        before = self._squares.get(module)
        self._squares[module] = square if before is None else before + square


class _Arrival:
    """The hook on one output; it keeps neither the output nor its gradient."""

    def __init__(self, norms: DirectNorms, module: nn.Module) -> None:
        self._norms, self._module = norms, module

    def __call__(self, gradient: Tensor | None) -> None:
        if gradient is None:  # another output of the same operator got one
            return
        try:
            with torch.no_grad():
                self._norms.arrived(self._module, gradient)
        except Exception:  # whatever it is, it is ours and must not reach the training
            self._norms.detach()


_COMPILED = ("_orig_mod", "_compiled_call_impl", "_compiler_ctx")
"""What a module has that torch.compile, or Lightning for it, has compiled."""


def _tensors(value: Any) -> list[Tensor]:
    """Those of an output, a state, or a pair of states."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [tensor for tensor in value or () if isinstance(tensor, Tensor)]
