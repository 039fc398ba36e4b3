"""Trains under FSDP2 on two ranks, or in one process on the same batches, and leaves what came out of it in ``<out>``.

Usage: ``python -m tests.integration.together.fsdp2 OUT SCENARIO …``
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_gradwatch import AdaptiveClip, GradWatch, Norm
from tests.integration.together.ddp import FSDP2_BOUND, Save
from tests.models import WORDS, sentences


class Net(nn.Module):
    """Embedding → recurrent layers → softmax; FSDP2 gathers the weights around its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.rnn = nn.LSTM(6, 8, 2, batch_first=True)
        self.head = nn.Linear(8, WORDS)

    def forward(self, words: Tensor, factor: float) -> Tensor:
        output, _ = self.rnn(self.embedding(words) * factor)
        return self.head(output)


class Cell(nn.Module):
    """A recurrence of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6 + 8, 8)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat([x, h], -1)))


class CellNet(Net):
    """With a cell of one's own in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = Cell()

    def forward(self, words: Tensor, factor: float) -> Tensor:
        h, states = torch.zeros(len(words), 8), []
        for x in (self.embedding(words) * factor).unbind(1):
            h = self.rnn(x, h)
            states.append(h)
        return self.head(torch.stack(states, 1))


class Sharded(pl.LightningModule):
    """A language model, sharded over two ranks or whole in one process; on demand a NaN on rank 1."""

    def __init__(self, spoil: bool, shard: bool, cell: bool = False) -> None:
        super().__init__()
        self.net = CellNet() if cell else Net()
        self.spoil, self.shard = spoil, shard

    def configure_model(self) -> None:
        if self.shard and not isinstance(self.net.head.weight, DTensor):
            mesh = self.device_mesh["data_parallel"]
            if isinstance(self.net.rnn, nn.LSTM):
                fully_shard(self.net.rnn, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        bad = self.spoil and self.global_rank == 1 and self.current_epoch == 0 and batch_idx == 1
        words = (
            batch[0][self.global_rank :: 2] if self.shard else batch[0]
        )  # the two ranks' sequences together are the batch
        logits = self.net(words[:, :-1], math.nan if bad else 1.0)
        return nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.01)


class SaveFull(Save):
    """Gathers the shards before it saves them."""

    def on_train_end(self, trainer, pl_module) -> None:
        super().on_train_end(trainer, pl_module)
        path = self.path.with_suffix(f".rank{trainer.global_rank}.pt")
        found = torch.load(path, weights_only=False)
        weights = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in pl_module.state_dict().items()}
        found["weights"] = {name: weight.clone() for name, weight in weights.items()}
        found["optimizer"] = {}
        torch.save(found, path)


def train(scenario: str, out: Path) -> None:
    """Run one scenario on this rank."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    run = out / f"{scenario}-log"
    callbacks = {
        "bare": [],
        "watched": [GradWatch(every_n_steps=2, dirpath=run)],
        "bare-cell": [],
        "watched-cell": [GradWatch(every_n_steps=2, dirpath=run)],
        "single": [AdaptiveClip(Norm(FSDP2_BOUND), dirpath=run)],
        "clipped": [AdaptiveClip(Norm(FSDP2_BOUND), dirpath=run)],
        "audited": [GradWatch(every_n_steps=1, dirpath=run), AdaptiveClip(Norm(FSDP2_BOUND), dirpath=run)],
        "nan": [GradWatch(every_n_steps=2, dirpath=run), AdaptiveClip(dirpath=run)],
    }[scenario]
    whole = scenario.startswith("single")
    strategy = "auto" if whole else ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1 if whole else 2,
        strategy=strategy,
        callbacks=[*callbacks, SaveFull(out / scenario)],
        default_root_dir=out,
        logger=False,
        max_steps=4,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Sharded(scenario == "nan", shard=not whole, cell="cell" in scenario), sentences(64, batch=16))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        train(name, Path(sys.argv[1]))
