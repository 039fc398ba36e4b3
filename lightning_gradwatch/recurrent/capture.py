"""Hooks that keep a reference to every recurrent call of a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.call import RecurrentCall, read_call


class Capture:
    """Watches fused recurrent modules. Between :meth:`begin` and :meth:`clear` every forward that can train leaves a call.

    Args:
        modules: qualified name → ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``.

    Attributes:
        calls: of the present step, in order.
        unseen: module name → why its last forward could not be kept.
        failure: an error of our own in a hook, kept for the next look instead of breaking the forward.
    """

    def __init__(self, modules: dict[str, nn.RNNBase]) -> None:
        self.modules = modules
        self.calls: list[RecurrentCall] = []
        self.unseen: dict[str, str] = {}
        self.failure: Exception | None = None
        self._active = False
        self._rng_state: torch.Tensor | None = None
        self._names = {module: name for name, module in modules.items()}
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on."""
        for module in self.modules.values():
            if module.dropout and module.num_layers > 1:
                self._handles.append(module.register_forward_pre_hook(self._before_forward))
            self._handles.append(module.register_forward_hook(self._after_forward, with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks off and let go of everything. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._active = False
        self.clear()

    def begin(self) -> None:
        """A training step begins."""
        self.clear()
        self._active = True

    def end(self) -> None:
        """The training step is over: what runs now (validation, prediction) is not kept."""
        self._active = False

    def clear(self) -> None:
        """Let go of the calls, and of the gradients that their tensors' hooks still hold."""
        for call in self.calls:
            call.release()
        self.calls = []
        self._rng_state = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert: a copied or pickled model carries our hooks along, and they must do nothing there."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__({})

    def _before_forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # The state of the CPU's generator is what the masks between layers can be drawn from again; cuDNN keeps its own.
        on_cpu = next(module.parameters()).device.type == "cpu"
        if self._active and module.training and torch.is_grad_enabled() and on_cpu:
            self._rng_state = torch.get_rng_state()

    def _after_forward(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if not (self._active and torch.is_grad_enabled()):
            return
        try:
            self._keep(module, inputs, kwargs, outputs)
        except Exception as error:  # whatever it is, it must not reach the user's forward
            self.failure, self._active = error, False

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        assert isinstance(module, nn.RNNBase)
        name = self._names[module]
        arguments = (*inputs, *(kwargs[key] for key in ("input", "hx")[len(inputs) :] if key in kwargs))
        rng_state, self._rng_state = self._rng_state, None
        try:
            index = sum(call.module == name for call in self.calls)
            call = read_call(name, index, module, arguments, outputs, rng_state)
        except TypeError as error:
            self.unseen[name] = str(error)
            return
        if not any(t.requires_grad for t in (call.output, call.h_n)):
            self.unseen[name] = "nothing in it needs a gradient"
            return
        call.watch_gradients()
        self.calls.append(call)
