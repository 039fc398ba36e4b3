"""``with watch(model, optimizer):`` does for a loop what GradWatch does for a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

from torch import nn
from torch.optim import Optimizer

from lightning_gradwatch import arguments
from lightning_gradwatch.detect import Detector
from lightning_gradwatch.engine.options import WatchArguments
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.announcer import Announcer
from lightning_gradwatch.findings.closing import say_findings
from lightning_gradwatch.findings.results import WatchResults
from lightning_gradwatch.outside.loop_findings import LoopFindings, Scalars
from lightning_gradwatch.outside.model import inner_model, inner_optimizer, optimizers_of
from lightning_gradwatch.outside.processes import gradients_are_averaged, rank
from lightning_gradwatch.outside.run_log import close_run_log, open_run_log, others
from lightning_gradwatch.outside.session import Session, SessionOptions
from lightning_gradwatch.outside.terminal import say
from lightning_gradwatch.recurrent.capture.modules import discover

_UNANNOUNCED = "its gradients did not come from a backward pass of one loss; no lags were measured"


_ANY = "Leave it out to hear every optimizer that holds a parameter of the model."


class watch(WatchArguments, WatchResults):  # noqa: N801  # it is entered, as ``torch.no_grad`` is
    """Measure how the gradient flows through time in a loop of one's own.

    ``with watch(model, optimizer) as w:`` around a plain loop, a loop over Lightning Fabric, or the
    call of a package that has its own. It hears the forward passes, the backward passes, by
    whatever call they begin, the gradient scaler and the optimizer's steps; nothing in the loop has
    to be changed, and training stays the same to the bit. What is recorded, when, under which
    names, and what is said at the end is as for :class:`GradWatch`.

    Under several processes each enters its own; rank 0 writes what all have in common. It must be
    entered after the process group was made.

    Args:
        model: as the loop calls it: wrapped by Fabric, ``DistributedDataParallel`` or
            ``torch.compile``, or not.
        optimizer: the loop's, or several of them; None are all that hold a parameter of the model,
            also those that are made later.
        modules: ``"auto"``, or shell-style patterns of qualified names.
        every_n_steps: optimizer steps from one sampled step to the next, ≥ 1; the steps of all
            optimizers count.
        max_sequences: of a batch that a sampled step measures, evenly spread, ≥ 1; None measures
            all.
        anchors: timesteps, spread over the sequence, whose loss is followed back through time,
            ≥ 1. Every sequence takes the last one, and by turns one of the others.
        keep_sequences: have the run log keep the total gradient of every measured sequence.
        accumulate_grad_batches: by how much the loop divides each loss, ≥ 1, which is undone in
            what is recorded; 1 where it does not.
        dirpath: the run log's folder; None is ``gradwatch`` in the current one. One that holds
            another run stays as it is, and a number is added.
        on_event: called with each event; an error in it is a warning.
        log: called with the values of a sampled step, by the keys of :class:`GradWatch`, and the
            step, as ``fabric.log_dict`` is; an error in it is a warning.
        summary: say at once the first critical event of each kind and that training has diverged,
            and at the end in a few lines what was found, through the logger
            ``lightning_gradwatch``.
        first_word: say in a line a module, after the step that first measures it, how far the
            gradient reaches back in it; with ``summary`` alone.
        detectors: your own, which judge the profiles of sampled steps; each time it is entered
            begins with a copy of them.
        influence: measure also what reaches the inputs of each fused module, as ``GradWatch`` does;
            not of cells in a loop.

    Attributes:
        run_dir: where the run log lies; None before, and where none could be written.
        epoch: may be set by the loop, so that the records have it and count batches from there.

    Raises:
        TypeError: the model or the optimizer is none.
        ValueError: an argument breaks its rule; on entering, a pattern that matches nothing, or a
            ``dirpath`` that cannot be written.
    """

    called = "watch"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        modules: Literal["auto"] | list[str] = "auto",
        every_n_steps: int = 50,
        max_sequences: int | None = 8,
        anchors: int = 4,
        keep_sequences: bool = False,
        accumulate_grad_batches: int = 1,
        dirpath: str | Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        log: Scalars | None = None,
        summary: bool = True,
        first_word: bool = True,
        detectors: list[Detector] | None = None,
        influence: bool = False,
    ) -> None:
        self.model, self.optimizers = _checked_model(model), [] if optimizer is None else optimizers_of(optimizer, _ANY)
        self._take_arguments(
            modules=modules,
            every_n_steps=every_n_steps,
            max_sequences=max_sequences,
            anchors=anchors,
            keep_sequences=keep_sequences,
            dirpath=dirpath,
            on_event=on_event,
            summary=summary,
            first_word=first_word,
            detectors=detectors,
            influence=influence,
            switch="Leave out the watch to switch it off.",
            none="leave out the watch",
        )
        remedy = "1 is a loop that does not divide its losses."
        self.accumulate_grad_batches = arguments.whole("accumulate_grad_batches", accumulate_grad_batches, remedy)
        self.log = log
        self.run_dir: Path | None = None
        self._session: Session | None = None
        self._found = self._findings()

    def __enter__(self) -> watch:
        """Find the modules, put the hooks on, open the run log.

        Raises:
            RuntimeError: it is entered already.
        """
        if self._session is not None:
            raise RuntimeError("This watch is entered already. Make another one: watch(model, optimizer).")
        modules = discover(inner_model(self.model), self._patterns)
        self._found = self._findings()
        inner = [inner_optimizer(optimizer) for optimizer in self.optimizers]
        session = Session(self.model, inner, self._options(), self._found, rank())
        log = self._found.sink.log = open_run_log(self.dirpath, self)
        self.run_dir = None if log is None else log.folder
        self._session = session
        session.begin(modules)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say what was found; take the hooks off."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            with session.harmless():
                if session.conclude(broken_off=kind is not None) and self.summary:
                    say_findings(say, self._found, self._events_of_others(), self.run_dir)
        finally:
            session.end()
            self._found.sink.log = None
            close_run_log(self)

    def step(self) -> None:
        """The step of the optimizer, or of each of them: the same as calling their own."""
        if not self.optimizers:
            raise RuntimeError("This watch was given no optimizer. Call the optimizer's own step().")
        for optimizer in self.optimizers:
            optimizer.step()

    @property
    def epoch(self) -> int | None:
        """As the loop said; None while it has not."""
        return None if self._session is None else self._session.passes.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if self._session is not None:
            self._session.begin_epoch(epoch)

    def _findings(self) -> LoopFindings:
        averaged = gradients_are_averaged(self.model)
        announcer = Announcer(say if self.summary else None)
        return LoopFindings(self.keep_sequences, self.on_event, announcer, self.log, averaged)

    def _options(self) -> SessionOptions:
        return SessionOptions(
            self.every_n_steps,
            self.accumulate_grad_batches,
            self._watch_options(_UNANNOUNCED),
            self._config("accumulate_grad_batches"),
            self._says_first_words,
        )

    def _events_of_others(self) -> list[Event]:
        """Of whoever writes into the same run log: a verdict rests on all that is in it."""
        writers = others(self._found.log, self)
        return [event for other in writers for event in cast("list[Event]", getattr(other, "events", []))]


def _checked_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an nn.Module; found {type(model).__name__}. Pass what the loop calls.")
    return model
