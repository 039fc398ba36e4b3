"""Writes what this version leaves on the disk: a run log with a bundle, a checkpoint, and what a reader must find in them.

Usage: ``python -m tests.formats.write``, once a release; the folders of earlier releases stay as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, __version__, load_run
from lightning_gradwatch.events import Event
from lightning_gradwatch.runlog.writer import RunLogWriter

HERE = Path(__file__).parent
BATCHES, BAD = 8, 5


class Labels(pl.LightningModule):
    """An LSTM that is to say which way a sequence began; one batch holds an infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.head(self.rnn(x)[0][:, -1]), y)

    def train_dataloader(self) -> DataLoader[Any]:
        x = torch.randn(4 * BATCHES, 30, 2, generator=torch.Generator().manual_seed(0))
        y = x[:, 0, :1].sign()
        x[4 * BAD + 2, 7, 1] = torch.inf
        return DataLoader(TensorDataset(x, y), batch_size=4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def callbacks() -> tuple[GradWatch, AdaptiveClip]:
    """One policy of each kind that remembers something."""
    policies: Any = {"rnn.bias*": "zclip", "head.weight": "adagc", "head.bias": "autoclip"}
    return GradWatch(every_n_steps=1, bundles=1, summary=False), AdaptiveClip(policies=policies)


def fit(root: Path, epochs: int, ckpt_path: Path | None = None, **options: Any) -> tuple[pl.Trainer, list[Any]]:
    """Train for so many epochs, the run log in ``root/gradwatch``."""
    torch.manual_seed(0)
    ours = callbacks()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=list(ours), default_root_dir=root, **quiet)
    trainer.fit(Labels(), ckpt_path=ckpt_path, **options)
    return trainer, list(ours)


def found_in(folder: Path) -> dict[str, Any]:
    """What a reader must find in a run log, whatever its own version."""
    run = load_run(folder)
    return {
        "run_id": run.meta["run_id"],
        "skipped_lines": run.skipped_lines,
        "profiles": [[p["step"], p["module"], p["layer"], p["state"], p["horizon"]] for p in run.profile_records],
        "lagged": run.profile_records[0]["lagged"],
        "events": [[e["step"], e["kind"], e["rank"], e["timestep"], e["sequence"]] for e in run.event_records],
        "norms": [[s["step"], repr(s["grad_norm"]), s["skipped"]] for s in run.step_records],
    }


def write(folder: Path) -> None:
    """Everything, into a folder that is not there yet."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        trainer, _ = fit(root / "first", epochs=1)
        other = RunLogWriter(root / "first" / "gradwatch", header={"run_id": "another rank's"}, rank=1)
        other.event(Event(EventKind.STEP_SKIPPED, BAD, rank=1, action="skipped"))
        other.close()
        trainer.save_checkpoint(root / "last.ckpt")
        _without_paths(root / "last.ckpt")
        folder.mkdir(parents=True)
        shutil.copytree(root / "first" / "gradwatch", folder / "gradwatch")
        shutil.copy(root / "last.ckpt", folder)
        fit(root / "whole", epochs=2)
        later = [s for s in load_run(root / "whole" / "gradwatch").step_records if s["step"] >= BATCHES]
        thresholds = [[s["step"], s["clip_threshold"]] for s in later]
        expected = {**found_in(folder / "gradwatch"), "next thresholds": thresholds}
        (folder / "expected.json").write_text(json.dumps(expected, indent=1), "utf-8")


def _without_paths(checkpoint: Path) -> None:
    """Where a run log lay is nobody's business."""
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    for state in content["callbacks"].values():
        if "run_dir" in state:
            state["run_dir"] = "/no/longer/there/gradwatch"
    torch.save(content, checkpoint)


if __name__ == "__main__":
    target = HERE / __version__
    if target.exists():
        sys.exit(f"{target} is there already. If nothing of this version was released, remove it first.")
    write(target)
    print(target)
