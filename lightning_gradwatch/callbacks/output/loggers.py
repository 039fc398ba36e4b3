"""Scalars for the Trainer's loggers, through each one's own interface; a logger that fails harms
neither the others nor the training.
"""

from __future__ import annotations

from collections.abc import Mapping

from lightning_gradwatch.trainer.compat import Trainer, rank_zero_warn


class Scalars:
    """What one callback writes to the loggers in a fit.

    Without us the training would not have seen a logger fail on our values, so it must not see it
    with us: the first failure of a kind of logger is a warning, what it did not take is left out.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._failed: set[str] = set()

    def write(self, trainer: Trainer, values: Mapping[str, float], step: int) -> None:
        """Hand ``values`` to every logger; each gets a copy, since
        some change what they are given.
        """
        for logger in trainer.loggers:
            try:
                logger.log_metrics(dict(values), step=step)
            except Exception as error:
                self._say(type(logger).__name__, error)

    def _say(self, name: str, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            rank_zero_warn(
                f"{self._owner} could not write to {name} ({type(error).__name__}: {error}); what it does not take is left out, and "
                "training goes on. The run log has it all."
            )
