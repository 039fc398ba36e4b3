"""What the loggers get has the keys of GradWatch's docstring and the values of the run log."""

from __future__ import annotations

import csv
import inspect
import re
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from lightning_gradwatch import GradWatch, load_run
from tests.integration.watched import fit
from tests.models import TinyLanguageModel


def test_logged_keys_are_those_of_the_docstring(tmp_path) -> None:
    """The table in GradWatch's docstring names exactly what is logged, and a value logged equals the run log's."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    watch = GradWatch(every_n_steps=2)
    fit(tmp_path, TinyLanguageModel("GRU", bidirectional=True), [watch], logger=logger)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("gradwatch/rnn/l0/horizon")]
    documented = re.findall(r"^``(\w+)`` ", inspect.getdoc(GradWatch) or "", re.M)
    assert documented
    expected = {f"gradwatch/rnn/{layer}/{key}" for layer in ("l0", "l0r") for key in documented}
    assert {key for key in rows[0] if key.startswith("gradwatch/")} == expected
    assert watch.run_dir == Path(logger.log_dir) / "gradwatch"
    records = [r for r in load_run(watch.run_dir).profile_records if r["direction"] == "reverse"]
    assert [float(row["gradwatch/rnn/l0r/growth_rate"]) for row in rows] == [r["growth_rate"] for r in records]
