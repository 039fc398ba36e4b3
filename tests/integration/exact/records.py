"""The profiles of a run log, without what a loop does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_gradwatch import load_run

PLACE = ("epoch", "batch_idx")
"""Of which a loop says nothing unless it is asked to."""


def records(run_dir: Path | None) -> list[dict[str, Any]]:
    assert run_dir is not None
    return [{k: v for k, v in record.items() if k not in PLACE} for record in load_run(run_dir).profile_records]
