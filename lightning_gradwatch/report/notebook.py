"""The report in a notebook."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_gradwatch.plain import say
from lightning_gradwatch.report.cell import frame, in_notebook
from lightning_gradwatch.report.html import report_page, write_report
from lightning_gradwatch.runlog.reader import Run


def show(run: Run, height: int) -> None:
    """Show the report in the cell; where there is no notebook, write it into the run's folder and
    say where.

    Args:
        run: of which.
        height: in pixels.

    Raises:
        ImportError: something of the extra ``report`` is missing.
    """
    if not in_notebook():
        say(str(write_report(run, run.path / "report.html")))
        return
    display: Any = importlib.import_module("IPython.display").display  # it is there: it runs us
    display({"text/html": frame(report_page([run]), height), "text/plain": repr(run)}, raw=True)
