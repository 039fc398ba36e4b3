"""Lightning under whichever of its two names the user's script has: ``lightning.pytorch`` or ``pytorch_lightning``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
    from lightning.pytorch.plugins import MixedPrecision
    from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

    lightning_version: str
else:

    def _namespace() -> str:
        """The name already imported, else the one installed; the other is never imported, since that costs a second."""
        names = ("lightning.pytorch", "pytorch_lightning")
        for name in names:
            if name in sys.modules:
                return name
        for name in names:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
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
    seed_everything = _pl.seed_everything
    lightning_version = _pl.__version__
    MixedPrecision = importlib.import_module(f"{_name}.plugins").MixedPrecision
    MisconfigurationException = importlib.import_module(f"{_name}.utilities.exceptions").MisconfigurationException
    _rank_zero = importlib.import_module(f"{_name}.utilities.rank_zero")
    rank_zero_info, rank_zero_warn = _rank_zero.rank_zero_info, _rank_zero.rank_zero_warn

    # Where a script has imported both names, a class that derives from both passes either one's checks.
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
    "seed_everything",
    "show_in_progress_bar",
]


def accumulation(trainer: Trainer) -> int:
    """By how many micro-batches the loss of the present batch was divided.

    Lightning divides by ``accumulate_grad_batches`` in the last, shorter window of an epoch too.
    """
    return int(trainer.accumulate_grad_batches)


def show_in_progress_bar(trainer: Trainer, texts: Mapping[str, str]) -> None:
    """Show texts behind the progress bar, past ``self.log``: no logger, no ``callback_metrics``, no checkpoint sees them."""
    trainer._logger_connector._progress_bar_metrics.update(texts)  # pyright: ignore[reportPrivateUsage, reportCallIssue, reportArgumentType]


def logged_step(trainer: Trainer) -> int:
    """The step that Lightning's own monitors log under (LearningRateMonitor does the same)."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)  # pyright: ignore[reportPrivateUsage]
