"""Hooks that let a rule act on hidden-state gradients while they flow back through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.inner_calls import has_own_forward
from lightning_gradwatch.recurrent.capture.loops import tensors
from lightning_gradwatch.recurrent.capture.modules import plain_name
from lightning_gradwatch.recurrent.capture.read_call import in_order, read_call
from lightning_gradwatch.recurrent.capture.scripted import scripted
from lightning_gradwatch.recurrent.capture.taps import listen
from lightning_gradwatch.recurrent.control.bounded_backward import Rule, reattach


class ThroughTime:
    """Attached to a model, it has every hidden state's gradient follow a rule: of fused modules by
    a backward of our own, of cells and taps by a hook on each state.

    Its forward hooks come before all others, so that a GradWatch sees what they
    leave, whichever was there first.

    Attributes:
        seen: whether any hidden state was held since :meth:`attach`.
    """

    def __init__(self, rule: Rule, is_over: FitIsOver | None = None) -> None:
        self.rule = rule
        self._is_over = is_over or FitIsOver()
        self.seen = False
        self._attached = False
        self._handles: list[RemovableHandle] = []
        self._end_listening: Callable[[], None] | None = None
        self._generator: dict[nn.Module, Tensor] = {}

    def attach(self, model: nn.Module) -> None:
        """Put the hooks on.

        Raises:
            ValueError: a recurrent module whose gradient cannot be
                held; or Ω, and there is no nn.RNN.
        """
        self.detach()
        self.seen = False
        for name, kind in scripted(model).items():
            raise _refusal(name, f"TorchScript holds it ({kind}), and takes no hooks", "Leave it unscripted.")
        compiled = [name or "model" for name, module in model.named_modules() if _is_compiled(module)]
        if compiled:
            raise _refusal(
                compiled[0], "it is compiled, and its graph takes no hooks", "Train it without torch.compile."
            )
        fused = {plain_name(n): module for n, module in model.named_modules() if isinstance(module, nn.RNNBase)}
        for name, module in fused.items():
            _require_right(name, module)
        if self.rule.omega is not None and not any(isinstance(module, nn.RNN) for module in fused.values()):
            raise ValueError(
                f"`omega` needs an nn.RNN, for which alone Ω is defined here; {type(model).__name__} has none. Leave it out."
            )
        for module in fused.values():
            if module.dropout and module.num_layers > 1:
                self._handles.append(module.register_forward_pre_hook(self._before_fused, prepend=True))
            self._handles.append(module.register_forward_hook(self._after_fused, prepend=True, with_kwargs=True))
        self._attached = True
        if self.rule.limit is None:
            return
        for module in model.modules():
            if isinstance(module, nn.RNNCellBase):
                self._handles.append(module.register_forward_hook(self._after_cell, prepend=True))
        self._end_listening = listen(lambda name, state: self._hold(state))

    def detach(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        self._attached = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._generator.clear()
        if self._end_listening is not None:
            self._end_listening()
            self._end_listening = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert: a copied or pickled model carries the hooks along,
        and they must do nothing there.
        """
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(Rule())

    @property
    def _inert(self) -> bool:
        return self._is_over() or not (self._attached and torch.is_grad_enabled())

    def _before_fused(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training and not self._inert:
            self._generator[module] = torch.get_rng_state()

    def _after_fused(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        generator = self._generator.pop(module, None)
        if self._inert:
            return None
        assert isinstance(module, nn.RNNBase)
        call = read_call("", 0, module, in_order(inputs, kwargs), outputs, generator)
        if not call.output.requires_grad:
            return None
        self.seen = True
        output, h_n, c_n = reattach(call, self.rule)
        packed = outputs[0]
        if isinstance(packed, PackedSequence):
            output = packed._replace(data=output)
        return output, h_n if c_n is None else (h_n, c_n)

    _after_fused.holds_gradient = True  # type: ignore[attr-defined]  # a GradWatch's hook stays behind it

    def _after_cell(self, module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        for state in tensors((outputs,)):
            self._hold(state)

    def _hold(self, state: Tensor) -> None:
        if self.rule.limit is not None and not self._inert and state.requires_grad:
            self.seen = True
            state.register_hook(self.rule.limit.hook)


def _is_compiled(module: nn.Module) -> bool:
    """By torch.compile, or by Lightning, which unwraps what it is given."""
    ways = ("_orig_mod", "_compiled_call_impl", "_compiler_ctx")
    return any(getattr(module, way, None) is not None for way in ways)


def _require_right(name: str, module: nn.RNNBase) -> None:
    """See before training that a fused module's backward can be computed here.

    Raises:
        ValueError: it cannot.
    """
    if has_own_forward(module):
        raise _refusal(
            name,
            f"{type(module).__name__} has a forward of its own",
            "Call torch's own class inside of a module instead of deriving from it.",
        )
    device = next(module.parameters()).device.type
    if module.dropout and module.num_layers > 1 and device != "cpu":
        raise _refusal(
            name,
            f"the dropout between its layers cannot be drawn again on {device}",
            "Use dropout=0, or one module a layer with nn.Dropout between them.",
        )


def _refusal(name: str, reason: str, remedy: str) -> ValueError:
    return ValueError(
        f"`clip_through_time` and `omega` need to hold the gradient inside of {name!r}, which they cannot: {reason}. {remedy}"
    )
