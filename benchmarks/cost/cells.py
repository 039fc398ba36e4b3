"""What watching a cell costs that is called in a Python loop, in process CPU time.

    python -m benchmarks.cost.cells [--pairs N] [--json FILE]

One model is trained, and on every second step GradWatch's hooks are called as the Trainer calls them. What is shown is the
median of the paired ratios, with quartiles; ordinary steps, and those at the defaults, where every 50th is measured in full.
The clock is the CPU time of this process, which other processes disturb less than the time on the wall.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn

from benchmarks.cost.overhead import ratio, spread
from lightning_gradwatch import GradWatch

BATCH, HIDDEN, INPUT, WARM_UP = 32, 64, 16, 6


class OwnCell(nn.Module):
    """A gated cell as one writes it: it is found while training."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new = nn.Linear(INPUT + HIDDEN, HIDDEN), nn.Linear(INPUT + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        both = torch.cat((x, h), -1)
        keep = torch.sigmoid(self.gate(both))
        return keep * h + (1 - keep) * torch.tanh(self.new(both))


CELLS: dict[str, Callable[[], nn.Module]] = {
    "own cell": OwnCell,
    "nn.LSTMCell": lambda: nn.LSTMCell(INPUT, HIDDEN),
    "nn.GRUCell": lambda: nn.GRUCell(INPUT, HIDDEN),
}


class Looped(pl.LightningModule):
    """``sequences`` loops over one cell, each of ``timesteps``."""

    def __init__(self, cell: nn.Module, timesteps: int, sequences: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(HIDDEN, 1)
        self.timesteps, self.sequences = timesteps, sequences

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        last = [self.last(x) for x in batch]
        return self.head(torch.stack(last)).square().mean()

    def last(self, x: Tensor) -> Tensor:
        h: Any = x.new_zeros(BATCH, HIDDEN)
        h = (h, h) if isinstance(self.cell, nn.LSTMCell) else h
        for t in range(self.timesteps):
            h = self.cell(x[t], h)
        return h[0] if isinstance(h, tuple) else h

    def data(self) -> Tensor:
        return torch.randn(self.sequences, self.timesteps, BATCH, INPUT)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def alternate(model: Looped, every_n_steps: int, pairs: int) -> tuple[list[float], list[float]]:
    """CPU seconds of bare and of watched steps in turn."""
    optimizer, data = model.configure_optimizers(), [model.data() for _ in range(4)]
    taken: tuple[list[float], list[float]] = [], []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        watch, trainer = _attached(model, data, Path(folder), every_n_steps, stack)
        for i in range(2 * (pairs + WARM_UP)):
            batch, on = data[i % 4], i % 2 == 1
            trainer.fit_loop.epoch_loop._batches_that_stepped += on
            begun = time.process_time()
            if on:
                watch.on_train_batch_start(trainer, model, batch, i)
            loss = model.training_step(batch, i)
            optimizer.zero_grad()
            if on:
                watch.on_before_backward(trainer, model, loss)
            loss.backward()
            if on:
                watch.on_after_backward(trainer, model)
                watch.on_before_optimizer_step(trainer, model, optimizer)
            optimizer.step()
            if on:
                watch.on_train_batch_end(trainer, model, None, batch, i)
            del loss
            if i >= 2 * WARM_UP:
                taken[on].append(time.process_time() - begun)
    return taken


def _attached(
    model: Looped, data: list[Tensor], folder: Path, every_n_steps: int, stack: contextlib.ExitStack
) -> tuple[GradWatch, pl.Trainer]:
    watch = GradWatch(every_n_steps=every_n_steps, dirpath=folder / "run", summary=False)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    trainer.state.status = TrainerStatus.RUNNING  # the hooks of a fit that is over do nothing
    watch.on_train_start(trainer, model)
    stack.callback(watch.teardown, trainer, model, "fit")
    return watch, trainer


def figures(make: Callable[[], nn.Module], timesteps: int, sequences: int, pairs: int) -> dict[str, object]:
    """Of one model."""
    torch.manual_seed(0)
    model, found = Looped(make(), timesteps, sequences), dict[str, object]()
    bare, watched = alternate(model, 10**9, pairs)
    ordinary = ratio(watched, bare)
    often_bare, often = alternate(model, 1, max(pairs // 8, 5))
    sampled = spread([on / off - 1 for on, off in zip(often, often_bare, strict=True)])
    found["ordinary step / bare step"] = ordinary
    found["what a sampled step adds / bare step"] = sampled
    found["at the defaults (every 50th sampled)"] = (
        ordinary["median"] + (sampled["median"] - ordinary["median"] + 1) / 50
    )
    calls = timesteps * sequences
    found["an ordinary step adds to a call, microseconds"] = spread(
        [1e6 * (on - off) / calls for on, off in zip(watched, bare, strict=True)]
    )
    found["bare step, milliseconds"] = spread([1e3 * seconds for seconds in bare])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=100, help="pairs of alternating steps")
    parser.add_argument("--calls", type=int, nargs="*", default=[100, 1000], help="of the cell in a step, in hundreds")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        f"{name}, {timesteps * sequences} calls": figures(
            make, timesteps, sequences, max(options.pairs // sequences, 10)
        )
        for timesteps, sequences in ((100, calls // 100) for calls in options.calls)
        for name, make in CELLS.items()
    }
    text = json.dumps({"torch": torch.__version__, **found}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
