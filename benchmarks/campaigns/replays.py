"""How often a bundle shows its event again: trainings that go wrong in a place that is drawn, each replayed from its file.

    python -m benchmarks.campaigns.replays [--count N] [--seed N] [--json FILE]

Each training draws its network, its options and its fault. The fault itself draws sequence, timestep and unit from torch's, Python's and
NumPy's generators while it trains, so that a replay that restored any of them wrongly would find another place. Between
the training and its replay all generators are seeded anew, and the model is built from the bundle alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch
from lightning_gradwatch.replay.build import build_module
from lightning_gradwatch.replay.compare import differences
from lightning_gradwatch.replay.rerun import watched_events
from lightning_gradwatch.replay.search import find_origin
from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, read_bundle

BATCH, TIME, WIDTH = 6, 9, 5
FAULTS = {
    "input": "x[place] = c.value",
    "output gradient": "mask[place[0], place[1], place[2]] = c.value",
    "loss": "loss * c.value",
    "weight": "rnn.weight_hh_l0[",
    "state": "state[0, place[0], place[2]] = c.value",
}
"""What goes wrong, and what the search for the operation must name: the very line; or the weight, which is spoilt in the bundle too."""

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Case:
    """One training.

    Args:
        at: the batch that goes wrong.
        hand_over: whether the hidden state is carried from batch to batch.
    """

    cell: str
    layers: int
    bidirectional: bool
    dropout: float
    hand_over: bool
    fault: str
    value: float
    at: int
    optimizer: str
    accumulate: int
    precision: str

    @classmethod
    def draw(cls, source: random.Random) -> Case:
        """Anything with anything."""
        return cls(
            cell=source.choice(("RNN", "LSTM", "GRU")),
            layers=source.randint(1, 3),
            bidirectional=source.random() < 0.3,
            dropout=source.choice((0.0, 0.3)),
            hand_over=source.random() < 0.3,
            fault=source.choice(list(FAULTS)),
            value=source.choice((math.nan, math.inf, -math.inf)),
            at=source.randint(0, 7),
            optimizer=source.choice(("SGD", "Adam", "RMSprop")),
            accumulate=source.choice((1, 1, 2, 3)),
            precision=source.choice(PRECISIONS),
        )


class Faulty(pl.LightningModule):
    """A recurrent network of a :class:`Case`, whose step ``at`` goes wrong."""

    def __init__(self, **case: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.case = Case(**case)
        c = self.case
        self.norm = nn.BatchNorm1d(WIDTH)
        self.rnn: nn.RNNBase = getattr(nn, c.cell)(
            WIDTH,
            7,
            c.layers,
            batch_first=True,
            bidirectional=c.bidirectional,
            dropout=c.dropout if c.layers > 1 else 0,
        )
        self.drop, self.head = nn.Dropout(c.dropout), nn.Linear(7 * (1 + c.bidirectional), 1)
        self.hidden: Any = None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        c, spoilt = self.case, batch_idx == self.case.at
        place = int(torch.randint(BATCH, ())), int(np.random.randint(TIME)), random.randrange(WIDTH)
        x = self.norm(batch[0].transpose(1, 2)).transpose(1, 2)
        if spoilt and c.fault == "input":
            x = x.clone()
            x[place] = c.value
        state = self.hidden if c.hand_over else None
        if spoilt and c.fault == "state":
            state = torch.zeros(c.layers * (1 + c.bidirectional), BATCH, 7, dtype=x.dtype)
            state[0, place[0], place[2]] = c.value
            state = (state, torch.zeros_like(state)) if c.cell == "LSTM" else state
        if spoilt and c.fault == "weight":
            with torch.no_grad():
                self.rnn.weight_hh_l0[place[2], place[2]] = c.value
        output, final = self.rnn(x, state)
        self.hidden = tuple(one.detach() for one in final) if c.cell == "LSTM" else final.detach()
        if spoilt and c.fault == "output gradient":
            mask = torch.zeros_like(output)
            mask[place[0], place[1], place[2]] = c.value
            output.register_hook(lambda gradient: gradient + mask)
        loss = (self.head(self.drop(output)).squeeze(-1) - batch[1]).square().mean()
        return loss * c.value if spoilt and c.fault == "loss" else loss

    def configure_optimizers(self) -> Any:
        optimizer = getattr(torch.optim, self.case.optimizer)(self.parameters(), lr=1e-2)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95), "interval": "step"}]


def run(case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """Train, replay from the file, and say what came of it."""
    _seed(seed)
    x, y = torch.randn(BATCH * 8, TIME, WIDTH), torch.randn(BATCH * 8, TIME)
    if case.precision == "64-true":
        x, y = x.double(), y.double()
    watch = GradWatch(dirpath=folder / "run", bundles=1, summary=False, every_n_steps=3)
    half = case.precision == "16-mixed"
    precision: dict[str, Any] = {"precision": case.precision}
    if half:
        precision = {"plugins": MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=512.0))}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch], accumulate_grad_batches=case.accumulate, default_root_dir=folder,
        **precision,
    )  # fmt: skip
    with torch.backends.mkldnn.flags(enabled="mixed" not in case.precision):
        trainer.fit(Faulty(**asdict(case)), DataLoader(TensorDataset(x, y), batch_size=BATCH))
    found = {"case": asdict(case), "seed": seed}
    written = sorted((folder / "run").glob("bundles/*.pt"))
    if not written:
        return {**found, "outcome": "no critical event"}
    bundle = read_bundle(written[0])
    _seed(seed + 1000)
    build = lambda: build_module(Faulty, bundle, {})  # noqa: E731
    seen = [event.to_record() for event in watched_events(build(), bundle)]
    distances = [differences(bundle[BUNDLE_KEY]["event"], event) for event in seen]
    origin = find_origin(build(), bundle)
    return {
        **found,
        "kind": bundle[BUNDLE_KEY]["event"]["kind"],
        "outcome": "same" if [] in distances else "different" if seen else "none",
        "differences": distances,
        "origin": None if origin is None else origin.told(),
        "right origin": origin is not None and FAULTS[case.fault] in origin.told(),
    }


def campaign(count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` trainings drawn from ``seed``."""
    source, results = random.Random(seed), list[dict[str, Any]]()
    for number in range(count):
        case = Case.draw(source)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(run(case, seed * 100_000 + number, Path(folder)))
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Outcomes by fault."""
    lines = [f"{'fault':<16} {'trainings':>9} {'bundles':>8} {'same event':>11} {'right origin':>13}"]
    for fault in (*FAULTS, None):
        own = [one for one in results if fault is None or one["case"]["fault"] == fault]
        count = Counter(one["outcome"] for one in own)
        written = len(own) - count["no critical event"]
        named = sum(one.get("right origin", False) for one in own)
        lines.append(f"{fault or 'all':<16} {len(own):>9} {written:>8} {count['same']:>11} {named:>13}")
    return "\n".join(lines)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def main() -> int:
    """Run and print; 1 where a replay did not show its event."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    results = campaign(args.count, args.seed)
    print(table(results))
    print("`bundles`: the others had no critical event; a gradient scaler's search is none.")
    failed = [one for one in results if one["outcome"] in ("different", "none") or not one.get("right origin", True)]
    for one in failed[:20]:
        print(json.dumps({key: one[key] for key in ("case", "kind", "outcome", "differences", "origin")}))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
