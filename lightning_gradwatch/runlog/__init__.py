"""The run log: its names (schema), how it is written and read back, and what it
amounts to in words (summary).
"""

from lightning_gradwatch.runlog.reader import Run, RunLogError, load_run
from lightning_gradwatch.runlog.schema import ProfileRecord, StepRecord
from lightning_gradwatch.runlog.summary import LayerSummary, summarise
from lightning_gradwatch.runlog.writer import RunLogWriter, choose_folder

__all__ = [
    "LayerSummary",
    "ProfileRecord",
    "Run",
    "RunLogError",
    "RunLogWriter",
    "StepRecord",
    "choose_folder",
    "load_run",
    "summarise",
]
