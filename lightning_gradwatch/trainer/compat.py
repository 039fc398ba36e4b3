"""Lightning under whichever of its two names the user's script has:
``lightning.pytorch`` or ``pytorch_lightning``.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.plain import plain, plain_lines

if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.plugins import MixedPrecision
    from lightning_utilities.core import rank_zero as _rank_zero
    from lightning_utilities.core import rank_zero as rank_zero_module

    lightning_version: str
else:

    def _namespace() -> str:
        """The name already imported, else the one installed; the other is never
        imported, since that costs a second.
        """
        names = ("lightning.pytorch", "pytorch_lightning")
        for name in names:
            if name in sys.modules:
                return name
        for name in names:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name not in (name, name.partition(".")[0]):  # it is there, and something that it needs is not
                    raise
                continue
            return name
        raise ModuleNotFoundError(
            "lightning-gradwatch needs `lightning` or `pytorch_lightning`; found neither. "
            "Install one: pip install lightning"
        )

    _name = _namespace()
    _pl = importlib.import_module(_name)
    LightningDataModule = _pl.LightningDataModule
    LightningModule = _pl.LightningModule
    Trainer = _pl.Trainer
    lightning_version = _pl.__version__
    MixedPrecision = importlib.import_module(f"{_name}.plugins").MixedPrecision
    MisconfigurationException = importlib.import_module(f"{_name}.utilities.exceptions").MisconfigurationException
    _rank_zero = importlib.import_module(f"{_name}.utilities.rank_zero")
    rank_zero_module = _rank_zero.rank_zero_module

    # Where a script has imported both names, a class that derives from
    # both passes either one's checks.
    _bases = [sys.modules[n].Callback for n in ("lightning.pytorch", "pytorch_lightning") if n in sys.modules]
    Callback = _bases[0] if len(_bases) == 1 else type("Callback", tuple(_bases), {})

__all__ = [
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "MixedPrecision",
    "Trainer",
    "lightning_version",
    "rank_zero_info",
    "rank_zero_warn",
    "say",
    "show_in_progress_bar",
    "was_stopped",
]


_CALLER = 5
"""Frames from ``warnings.warn`` to who calls :func:`rank_zero_warn`."""


def rank_zero_info(message: str) -> None:
    """Say something through Lightning's own logger, on rank 0."""
    _rank_zero.rank_zero_info(plain_lines(message))


def rank_zero_warn(message: str) -> None:
    """Warn, on rank 0."""
    _rank_zero.rank_zero_warn(plain(message), stacklevel=_CALLER)


def say(text: str, *, urgent: bool = False, everywhere: bool = False) -> None:
    """Say something through the logger of Lightning's own ``rank_zero_info``.

    Args:
        urgent: as a warning, which a logger set to that level lets through.
        everywhere: on this rank, whichever it is.
    """
    if everywhere or not getattr(rank_zero_module.rank_zero_only, "rank", 0):
        rank_zero_module.log.log(logging.WARNING if urgent else logging.INFO, "%s", plain_lines(text))


def accumulation(trainer: Trainer) -> int:
    """By how many micro-batches the loss of the present batch was divided.

    Lightning divides by ``accumulate_grad_batches`` in the last, shorter window of an epoch too.
    """
    return int(trainer.accumulate_grad_batches)


def accumulates_further(trainer: Trainer) -> bool:
    """Whether, in automatic optimization, more batches are to come before the optimizer step."""
    return trainer.fit_loop._should_accumulate()  # pyright: ignore[reportPrivateUsage]


def show_in_progress_bar(trainer: Trainer, texts: Mapping[str, str]) -> None:
    """Show texts behind the progress bar, past ``self.log``: no logger, no
    ``callback_metrics``, no checkpoint sees them.
    """
    trainer._logger_connector._progress_bar_metrics.update(texts)  # pyright: ignore[reportPrivateUsage, reportCallIssue, reportArgumentType]


def was_stopped(trainer: Trainer) -> bool:
    """Whether the fit is over, be it that it ended or that it was broken off: Lightning notes
    this before it calls any callback.
    """
    return trainer.state.status.stopped


def logged_step(trainer: Trainer) -> int:
    """The step that Lightning's own monitors log under (LearningRateMonitor does the same)."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)  # pyright: ignore[reportPrivateUsage]


def without_module(callback: Callback) -> dict[str, Any]:
    """A callback's attributes, for a copy or a pickle, without ``log`` and ``log_dict``: Lightning
    binds the module's own to its callbacks, and the module would come along.
    """
    return {name: value for name, value in vars(callback).items() if name not in ("log", "log_dict")}
