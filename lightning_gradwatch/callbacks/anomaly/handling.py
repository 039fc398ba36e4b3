"""What GradWatch does besides looking, where it was asked to: respond to an
anomaly, and write its bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_gradwatch import arguments
from lightning_gradwatch.callbacks.anomaly.bundle import Bundles
from lightning_gradwatch.callbacks.anomaly.responses import RESPONSES, Responder, Response
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, rank_zero_warn
from lightning_gradwatch.trainer.sharding import out_of_reach


@dataclass(frozen=True)
class HandlingOptions:
    """GradWatch's arguments of these names.

    Raises:
        ValueError: one breaks its rule.
    """

    on_anomaly: Response | None
    max_responses: int
    snapshot_every_n_steps: int
    bundles: int
    bundle_mib: int

    def __post_init__(self) -> None:
        if self.on_anomaly is not None:
            arguments.one_of("on_anomaly", self.on_anomaly, RESPONSES, "Leave it out to observe only.")
        for name, least, remedy in (
            ("max_responses", 1, 'Use on_anomaly="stop" to stop at the first.'),
            ("snapshot_every_n_steps", 1, "Fewer steps lose less and copy more often."),
            ("bundles", 0, "0 writes none."),
            ("bundle_mib", 1, "Use bundles=0 to write none."),
        ):
            object.__setattr__(self, name, arguments.whole(name, getattr(self, name), remedy, least=least))


@dataclass
class AnomalyHandling:
    """What is done in one fit."""

    options: HandlingOptions
    _responder: Responder | None = None
    _bundles: Bundles | None = None

    @property
    def wanted(self) -> bool:
        """Whether anything is to be done at a critical event, which must then be
        known before the optimizer step.
        """
        return self._responder is not None or self._bundles is not None

    def respond(self, trainer: Trainer, modules: Mapping[str, nn.Module], report: Callable[[Event], None]) -> None:
        """Be ready to act. Outside of what an error of our own ends:
        what one rank does, all must do.
        """
        options = self.options
        if options.on_anomaly is None:
            return
        reasons = [reason for module in modules.values() if (reason := out_of_reach(trainer, module)) is not None]
        if reasons:
            rank_zero_warn(f'GradWatch(on_anomaly="{options.on_anomaly}") does nothing in this fit: {reasons[0]}.')
            return
        self._responder = Responder(options.on_anomaly, options.max_responses, options.snapshot_every_n_steps, report)

    def keep_bundles(self, folder: Path, rank: int, config: Mapping[str, Any]) -> None:
        """Be ready to write bundles into the run log's folder."""
        if self.options.bundles:
            self._bundles = Bundles(self.options.bundles, self.options.bundle_mib, folder, rank, config)

    def begin_batch(self, trainer: Trainer, module: LightningModule) -> None:
        """Before anything of the batch ran."""
        if self._responder is not None:
            self._responder.begin_batch(trainer, module)

    def keep_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what the step will change."""
        if self._bundles is not None:
            self._bundles.begin_batch(trainer, module, batch, batch_idx)

    def see(self, events: Sequence[Event], trainer: Trainer, module: LightningModule) -> None:
        """Take the critical ones of new events, while the step can
        still be skipped or written down.
        """
        for event in events:
            if event.severity != Severity.CRITICAL or event.kind == EventKind.STEP_SKIPPED:
                continue
            if self._responder is not None:
                self._responder.note(event)
            if self._bundles is not None and event.kind != EventKind.DIVERGED:  # no single step did it
                self._bundles.write(event, trainer, module)

    def before_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer, moment: Moment) -> None:
        """Decide, with all ranks, about the optimizer step that comes."""
        if self._responder is not None:
            self._responder.before_step(trainer, module, optimizer, moment)

    def end_batch(self, trainer: Trainer, module: LightningModule, moment: Moment) -> None:
        """Do what is left to do after the optimizer step, and let go of it."""
        if self._bundles is not None:
            self._bundles.end_batch()
        if self._responder is not None:
            self._responder.end_batch(trainer, module, moment)

    def hint(self) -> list[str]:
        """How to repeat the first step that was written."""
        return [] if self._bundles is None else self._bundles.hint()

    def end_watching(self) -> None:
        """No more events come. The responder stays, since the other ranks would wait for it."""
        self._bundles = None
