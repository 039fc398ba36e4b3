"""Trains under one of Lightning's two names, as a script or by LightningCLI, and prints what came out of it as JSON.

Usage: ``python -m tests.integration.portable.namespace NAMESPACE WITH OUT [CLI arguments …]``; WITH is ``both`` or ``only``
(the other name cannot be imported).
"""

from __future__ import annotations

import importlib
import importlib.abc
import json
import sys
from pathlib import Path

NAMES = ("lightning", "pytorch_lightning")


class Uninstalled(importlib.abc.MetaPathFinder):
    """Makes a package look as if it were not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(namespace: str, how: str, out: Path, arguments: list[str]) -> None:
    """Train, and print the findings as the last line."""
    (other,) = set(NAMES) - {namespace.partition(".")[0]}
    if how == "only":
        sys.meta_path.insert(0, Uninstalled(other))
    pl = importlib.import_module(namespace)
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 1)

        def training_step(self, batch, batch_idx):
            return self.head(self.rnn(batch)[0]).square().mean()

        def train_dataloader(self):
            return DataLoader(torch.randn(24, 6, 3), batch_size=4)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    options = {
        "max_steps": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(out),
    }
    if arguments:
        cli = importlib.import_module(f"{namespace}.cli")
        trainer = cli.LightningCLI(Model, args=arguments, trainer_defaults=options).trainer
    else:
        from lightning_gradwatch import AdaptiveClip, GradWatch

        callbacks = [] if "bare" in sys.argv[2] else [GradWatch(every_n_steps=2), AdaptiveClip()]
        trainer = pl.Trainer(callbacks=callbacks, **options)
        trainer.fit(Model())
    ours = [callback for callback in trainer.callbacks if type(callback).__module__.startswith("lightning_gradwatch.")]
    found = {
        "callbacks": [type(callback).__name__ for callback in ours],
        "right base": all(isinstance(callback, pl.Callback) for callback in ours),
        "run_dir": [str(callback.run_dir) for callback in ours],
        "policies": [callback.state_key for callback in ours if type(callback).__name__ == "AdaptiveClip"],
        "every_n_steps": [callback.every_n_steps for callback in ours if hasattr(callback, "every_n_steps")],
        "measured": [bool(callback.lagged) for callback in ours if hasattr(callback, "lagged")],
        "other imported": other in sys.modules,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
