"""Hooks that keep a reference to every recurrent call of a training step."""

# Over 300 lines: every hook is guarded in one place; what each keeps has a file of its own.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.cell_reader import StateCall
from lightning_gradwatch.recurrent.capture.direct_calls import Hearing, hear_direct_calls
from lightning_gradwatch.recurrent.capture.ears import Ears
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.hook_order import FirstHooks
from lightning_gradwatch.recurrent.capture.inner_calls import InnerCalls, has_own_forward
from lightning_gradwatch.recurrent.capture.loops import Loops
from lightning_gradwatch.recurrent.capture.own_recurrence import OwnRecurrences
from lightning_gradwatch.recurrent.capture.read_call import in_order, read_call
from lightning_gradwatch.recurrent.capture.scan_taps import listen_to_scans
from lightning_gradwatch.recurrent.capture.scans import Scans
from lightning_gradwatch.recurrent.capture.slots import Slots, results
from lightning_gradwatch.recurrent.capture.taken import Taken
from lightning_gradwatch.recurrent.capture.taps import listen
from lightning_gradwatch.recurrent.capture.unread import Heard, Unread
from lightning_gradwatch.recurrent.graph import saved_hooks
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.scan import Scan

FROZEN = "nothing in it needs a gradient"
"""Why a call is not kept that could not be trained: it is frozen with all before
it, or runs under ``no_grad``.
"""


class Capture:
    """Watches recurrent modules. Between :meth:`begin` and :meth:`end` every forward that can
    train leaves a call, a loop or a scan.

    Args:
        modules: qualified name → ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, a cell, or any module
            that is called once a timestep.
        clock: optimizer steps done so far, of which each call keeps the number.
        is_over: asked by each hook, for where nobody said that the fit is over.

    Attributes:
        unseen: module name → why its last forward could not be kept.
        without_grad: names of the modules that were called where gradients are switched off.
        marked: names of taps and of scans, each once.
        failure: an error of our own in a hook, kept for the next look
            instead of breaking the forward.
    """

    def __init__(
        self, modules: dict[str, nn.Module], clock: Callable[[], int] = lambda: 0, is_over: FitIsOver | None = None
    ) -> None:
        self.modules, self._clock, self._is_over = modules, clock, is_over or FitIsOver()
        self._calls: list[RecurrentCall | Loop | Scan] = []
        self._ears = Ears()
        self._unread = Unread(self._ears)  # what was heard since anybody asked for the calls
        self.unseen: dict[str, str] = {}
        self.without_grad: set[str] = set()
        self.marked: dict[str, None] = {}
        self.failure: Exception | None = None
        self.loops, self._scans = Loops(self._calls, clock), Scans(lambda scan: self._unread.add_whole(scan), clock)
        self._active = self._announced = self._one_pass = False
        self._number: Counter[str] = Counter()  # calls of a module in the present step
        self._rng_state: Tensor | None = None
        self._names = {id(module): name for name, module in modules.items()}
        self._inner: dict[nn.Module, InnerCalls] = {}
        self._own_recurrences = OwnRecurrences()
        self._first = FirstHooks()
        self._cells: dict[int, tuple[nn.Module, Hearing]] = {}
        self._handles: list[RemovableHandle] = []
        self._endings: list[Callable[[], None]] = []

    def attach(self) -> None:
        """Put the hooks on."""
        self._endings += [listen(self._after_tap), listen_to_scans(self._after_scan), saved_hooks.listen()]
        for module in self.modules.values():
            self.attach_to(module)

    def attach_to(self, module: nn.Module) -> None:
        """Put the hooks on one module, and listen to calls of its forward that go around them."""
        if not isinstance(module, nn.RNNBase):
            self._cells[id(module)] = module, Hearing(module, partial(self._after_cell, module))
            return
        if has_own_forward(module):
            self._handles.append(module.register_forward_pre_hook(self._before_own_forward))
            after = self._after_own_forward
            self._handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))
            return
        if module.dropout and module.num_layers > 1:
            self._first.add_before(module, self._before_forward)
        self._first.add(module, self._after_forward)
        self._endings.append(hear_direct_calls(module, self._after_direct))

    def add(self, name: str, module: nn.Module, slots: Slots | None) -> None:
        """Watch a module found while training, or what was found out of its states."""
        if slots is not None:
            self.loops.slots[name] = slots
        if name not in self.modules:
            self.modules[name], self._names[id(module)] = module, name
            self.attach_to(module)

    def detach(self) -> None:
        """Take the hooks off and let go of everything. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for end in self._endings:
            end()
        for _, hearing in self._cells.values():
            hearing.end()
        self._cells.clear()
        self._endings.clear()
        self._first.remove()
        self._active = False
        self.clear()
        self._ears.close()

    def read_calls(self) -> list[RecurrentCall | Loop | Scan]:
        """The calls of the present step so far, in order of their first forward; what was only
        heard of is read now.
        """
        if self._unread.calls:
            self._unread.read_into(self._calls, self.loops, final=False)
        return self._calls

    def begin(self, *, announced: bool = False) -> None:
        """A training step begins.

        Args:
            announced: :meth:`listen` will be called before its one backward pass. Then a call of a
                cell costs next to nothing until :meth:`read_calls`.
        """
        self.clear()
        self._first.settle()
        for _, hearing in self._cells.values():
            hearing.settle()
        self._active, self._one_pass = True, announced
        self._put_off()

    def _put_off(self) -> None:
        # What is still to be found out of a cell is found out of its first step.
        self._announced = self._one_pass and not self.loops.undecided

    def listen(self) -> None:
        """The backward pass is about to begin: have its gradients kept. On a step
        that is to be measured in full, they were read before, and keep them.
        """
        self._unread.listen()
        self._announced = False  # what is called within the backward pass is listened to at once

    def heard(self) -> list[Heard]:
        """Which modules were called in this step."""
        return [*(Heard(call.module, call.step) for call in self._calls), *self._unread.heard()]

    def arrived(self) -> list[Heard]:
        """Those of them that a gradient reached."""
        known = [Heard(call.module, call.step) for call in self._calls if call.has_gradient()]
        return [*known, *self._unread.arrived()]

    def end(self) -> None:
        """The training step is over: what runs now (validation, prediction) is not kept."""
        self._active = False

    def clear(self) -> None:
        """Let go of the calls, and of the gradients that their tensors' hooks still hold."""
        self.forget_gradients()
        self._calls.clear()
        self._unread.clear()
        self.loops.clear()
        self._scans.clear()
        self._number.clear()
        self._rng_state = None

    def forget_gradients(self) -> None:
        """Forget the gradients that have arrived so far; the calls stay."""
        for call in self._calls:
            call.release()
        self._unread.forget_gradients()

    def take(self) -> list[RecurrentCall | Loop | Scan]:
        """Take away the calls whose gradients have arrived, in order; the others stay."""
        arrived = [call for call in self.read_calls() if call.has_gradient()]
        self._calls[:] = [call for call in self._calls if not call.has_gradient()]
        return arrived

    def take_heard(self) -> Taken:
        """The same, but that sequences nobody has asked for need not be made. Of a step whose one
        backward pass was announced it takes whatever was heard.
        """
        if self._calls or not (self._one_pass and self._unread.is_listening()):
            return Taken(self.take())
        unread, self._unread = self._unread, Unread(self._ears)
        self.loops.forget()
        self._put_off()  # a line search runs the forward pass again
        return Taken(unread=unread)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert: a copied or pickled model carries our hooks along,
        and they must do nothing there.
        """
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__({})

    # ------------------------------------------------------------------ hooks: nothing in them
    # may reach the user's forward

    def _guarded(self, keep: Callable[[], None]) -> None:
        if self._is_over() or not (self._active and torch.is_grad_enabled()):
            return
        try:
            keep()
        except Exception as error:  # whatever it is, it is ours and must not break the user's forward
            self.failure, self._active = error, False

    def _before_forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._guarded(lambda: self._save_generator(module))

    def _save_generator(self, module: nn.Module) -> None:
        # The state of the CPU's generator is what the masks between layers can be drawn
        # from again; cuDNN keeps its own.
        if module.training and next(module.parameters()).device.type == "cpu":
            self._rng_state = torch.get_rng_state()

    def _after_forward(
        self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any, doubt: str | None
    ) -> None:
        if self._active and not torch.is_grad_enabled():
            self.without_grad.add(self._names[id(module)])
        self._guarded(lambda: self._keep(module, inputs, kwargs, outputs, doubt))

    def _after_direct(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        self._rng_state = None  # what a hook before the forward would have saved
        self._after_forward(module, inputs, kwargs, outputs, None)

    def _keep(
        self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any, doubt: str | None
    ) -> None:
        assert isinstance(module, nn.RNNBase)
        rng_state, self._rng_state = self._rng_state, None
        if has_own_forward(module):
            doubt = "its forward was replaced after training began"
        self._read(
            module,
            lambda name, index: read_call(name, index, module, in_order(inputs, kwargs), outputs, rng_state, doubt),
        )

    def _read(self, module: nn.Module, read: Callable[[str, int], RecurrentCall]) -> None:
        name = self._names[id(module)]
        try:
            call = read(name, self._number[name])
        except TypeError as error:
            self.unseen[name] = str(error)
            return
        if not (call.output.requires_grad or call.h_n.requires_grad):
            self.unseen[name] = FROZEN
            return
        if not call.output.numel():
            self.unseen[name] = "its batch was empty"
            return
        self._number[name] += 1
        call.step = self._clock()
        call.watch_gradients()
        self._unread.add_whole(call)

    def _before_own_forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._guarded(lambda: self._enter(module))

    def _enter(self, module: nn.Module) -> None:
        assert isinstance(module, nn.RNNBase)
        if module not in self._inner:  # a forward that calls itself is followed once
            self._inner[module] = InnerCalls(module, lambda read: self._guarded(lambda: self._read(module, read)))
            self._inner[module].__enter__()

    def _after_own_forward(
        self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> None:
        inner = self._inner.pop(module, None)
        if inner is None:
            return
        inner.__exit__(None, None, None)  # also after an error of the forward, whatever became of us meanwhile
        if not inner.seen:
            self._guarded(lambda: self._keep_own(module, inputs, kwargs, outputs))

    def _keep_own(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        """A forward without PyTorch's operator may compute the same recurrence."""
        assert isinstance(module, nn.RNNBase)
        given, mask = in_order(inputs, kwargs), kwargs.get("mask", inputs[2] if len(inputs) > 2 else None)
        self._read(module, lambda name, i: self._own_recurrences.read(name, i, module, given, outputs, mask))

    def _after_cell(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        # Called up to thousands of times a step, so that it says by itself what _guarded says; and
        # in a step of the Trainer's it asks whether the fit is over where a sequence begins.
        if not self._announced and self._is_over():
            return
        if not self._active:
            return
        if not torch.is_grad_enabled():
            self.without_grad.add(self._names[id(module)])
            return
        try:
            call = self.loops.read(self._names[id(module)], module, inputs, kwargs, outputs)
            if call is not None and self._announced and call.begins is not None and self._is_over():
                self.loops.forget()  # so that the next one begins a sequence, too
                return
            if call is None and not any(made.requires_grad for made in results(outputs).values()):
                self.unseen[self._names[id(module)]] = FROZEN
            self._keep_state(call)
        except Exception as error:  # as in :meth:`_guarded`
            self.failure, self._active = error, False

    def _keep_state(self, call: StateCall | None) -> None:
        if call is not None:
            self._unread.add(call)
            if not self._announced:
                self._unread.read_into(self._calls, self.loops, final=False)  # which watches its states

    def _after_tap(self, name: str, state: Tensor) -> None:
        self._guarded(lambda: self._keep_tap(name, state))

    def _keep_tap(self, name: str, state: Tensor) -> None:
        self._keep_state(self.loops.read_tap(name, state))
        self._mark(name, None)

    def _after_scan(self, scan: Scan) -> None:
        if torch.is_grad_enabled():
            self._guarded(lambda: self._mark(scan.module, self._scans.keep(scan)))
        elif not self._is_over() and self._active:
            self._mark(scan.module, FROZEN)

    def _mark(self, name: str, unseen: str | None) -> None:
        self.marked[name] = None
        if unseen is not None:
            self.unseen[name] = unseen

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the watched modules. Those of the recurrent weights alone would not do:
        an infinite input that saturates its gates spoils the gradient of the input weight, and no
        other.
        """
        for module in self.modules.values():
            yield from module.parameters()
