"""Of which modules the influence of inputs is missing in a run log."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.profile import INPUT
from lightning_gradwatch.report.series import Record
from lightning_gradwatch.runlog.reader import Run

ONLY_OF = (
    "Influence is measured of nn.RNN, nn.LSTM and nn.GRU that are called once a step: not of cells in a loop, modules fed "
    "piece by piece, taps or scans."
)


def without_influence(records: Sequence[Record]) -> list[str]:
    """Modules that were measured, and their inputs not."""
    measured = dict.fromkeys(str(record.get("module")) for record in records)
    with_inputs = {str(record.get("module")) for record in records if record.get("state") == INPUT}
    return [module for module in measured if module not in with_inputs]


def asked_for(run: Run) -> bool:
    """Whether the run was to measure it."""
    config = run.meta.get("config")
    own = config.values() if isinstance(config, dict) else ()
    return any(isinstance(one, dict) and bool(one.get("influence")) for one in own)
