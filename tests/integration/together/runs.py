"""What several processes that torchrun started left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_gradwatch import load_run

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)


STATE = ("weights", "optimizer", "rng", "global_step")


class Runs:
    """What the scenarios of one launch left."""

    def __init__(self, folder: Path, output: str) -> None:
        self.folder, self.output = folder, output

    def ranks(self, scenario: str) -> list[dict[str, Any]]:
        """The end state of both ranks."""
        return [torch.load(self.folder / f"{scenario}.rank{rank}.pt", weights_only=False) for rank in (0, 1)]

    def state(self, scenario: str) -> list[dict[str, Any]]:
        """That part of it which watching must not change."""
        return [{name: rank[name] for name in STATE} for rank in self.ranks(scenario)]

    def events(self, scenario: str, callback: str) -> list[list[dict[str, Any]]]:
        """A callback's events on both ranks."""
        return [rank[callback]["events"] for rank in self.ranks(scenario)]

    def steps(self, scenario: str) -> list[dict[str, Any]]:
        """AdaptiveClip's steps."""
        return load_run(self.folder / f"{scenario}-log").step_records
