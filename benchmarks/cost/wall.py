"""Seconds of a training step with a fused module: bare, watched, and beside what else people switch on to find a fault.

    python -m benchmarks.cost.wall                       on the GPU, all sizes: an hour or more
    python -m benchmarks.cost.wall --device cpu --quick  tiny, to see that it runs: its seconds say nothing

Whole Trainer runs of a 2-layer language model, the variants in turn, round by round. A round of a variant is its mean step, the first
one, which warms up, left out; with GradWatch at its defaults the mean is over 50 steps, one of which is sampled. Shown are the medians
over rounds, and of each round's ratio to the bare run of the same round, with the smallest and the largest. On CUDA a step is what lies
between two events on the stream; on a CPU the clock on the wall is read. What is not installed is left out, in a line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import nn

from benchmarks.cost.overhead import LanguageModel, batches
from lightning_gradwatch import GradWatch

DEFAULT_EVERY = 50


@dataclass(frozen=True)
class Size:
    """Of one model and its batches."""

    kind: str
    timesteps: int
    hidden: int
    precision: str
    batch: int

    def model(self) -> LanguageModel:
        return LanguageModel(getattr(nn, self.kind), self.hidden)


@dataclass
class Marks:
    """Points in time on a device, read when all is over: to read one at once would wait for it."""

    device: str
    points: list[float | torch.cuda.Event] = field(default_factory=list)

    def mark(self, *_: object) -> None:
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.points.append(event)
        else:
            self.points.append(time.perf_counter())

    def until(self, others: Marks) -> list[float]:
        """Seconds from each point to the other's."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return [_seconds(begin, end) for begin, end in zip(self.points, others.points, strict=True)]


def _seconds(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return begin.elapsed_time(end) / 1e3
    assert not isinstance(end, torch.cuda.Event)
    return end - begin


@dataclass(frozen=True)
class Variant:
    """What a Trainer is given besides the model, for a folder of its own; and over how many steps its mean is taken at least."""

    callbacks: Callable[[Path], list[pl.Callback]] = lambda folder: []
    detect_anomaly: bool = False
    wandb: bool = False
    least_steps: int = 1


def _watching(**options: int) -> Callable[[Path], list[pl.Callback]]:
    return lambda folder: [GradWatch(dirpath=folder / "run", summary=False, **options)]


VARIANTS = {
    "bare": Variant(),
    "GradWatch at its defaults": Variant(_watching(), least_steps=DEFAULT_EVERY),
    "GradWatch, every step": Variant(_watching(every_n_steps=1)),
    "detect_anomaly": Variant(detect_anomaly=True),
    f"wandb.watch, every {DEFAULT_EVERY}": Variant(wandb=True, least_steps=DEFAULT_EVERY),
}


def mean_step(size: Size, variant: Variant, steps: int, device: str, folder: Path) -> float:
    """Seconds, of one run."""
    steps = max(steps, variant.least_steps)
    first, last, starts, ends = pl.Callback(), pl.Callback(), Marks(device), Marks(device)
    first.on_train_batch_start, last.on_train_batch_end = starts.mark, ends.mark  # type: ignore[method-assign]
    data, model = batches(steps + 1, size.batch, size.timesteps), size.model()
    with _logging(variant, model, folder) as logger:
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision=size.precision, max_epochs=1, logger=logger,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            detect_anomaly=variant.detect_anomaly, callbacks=[first, *variant.callbacks(folder), last],
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return statistics.fmean(starts.until(ends)[1:])


@contextlib.contextmanager
def _logging(variant: Variant, model: nn.Module, folder: Path) -> Iterator[WandbLogger | None]:
    """Weights & Biases, offline, if the variant is about it."""
    if not variant.wandb:
        yield None
        return
    logger = WandbLogger(save_dir=folder, offline=True)
    logger.watch(model, log_freq=DEFAULT_EVERY, log_graph=False)
    try:
        yield logger
    finally:
        logger.experiment.unwatch(model)
        logger.experiment.finish()


def rounds(size: Size, variants: dict[str, Variant], turns: int, steps: int, device: str) -> dict[str, list[float]]:
    """Mean seconds of a step by variant, one a round; a variant that does not fit into memory has none."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    lost: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for turn, (name, variant) in zip(count(), list(variants.items()) * turns, strict=False):
            if name not in lost:
                try:
                    taken[name].append(mean_step(size, variant, steps, device, Path(folder) / str(turn)))
                except torch.cuda.OutOfMemoryError:
                    lost.add(name)
                    taken[name].clear()
    return taken


def lines(taken: dict[str, list[float]]) -> Iterator[str]:
    """What is printed of one size: its variants."""
    bare = taken["bare"]
    for name, seconds in taken.items():
        if not seconds:
            yield f"{name:>28}  does not fit into memory"
        elif not bare:
            yield f"{name:>28} {1e3 * statistics.median(seconds):10.2f} ms"
        else:
            ratios = [own / other for own, other in zip(seconds, bare, strict=True)]
            spread = f"{statistics.median(ratios):6.3f}  ({min(ratios):.3f} to {max(ratios):.3f})"
            yield f"{name:>28} {1e3 * statistics.median(seconds):10.2f} ms {spread}"


def _sizes(quick: bool) -> list[Size]:
    if quick:
        return [Size(kind, 12, 8, "32-true", 4) for kind in ("LSTM", "GRU")]
    each = product(("LSTM", "GRU"), (128, 1_000, 10_000), (256, 1_024), ("32-true", "bf16-mixed"))
    return [Size(*one, batch=32) for one in each]


def _installed(variants: dict[str, Variant]) -> dict[str, Variant]:
    if importlib.util.find_spec("wandb") is None:
        print("wandb is not installed: wandb.watch is left out.")
        return {name: variant for name, variant in variants.items() if not variant.wandb}
    return variants


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="one round of a few steps, tiny models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of a run, where no more are needed")
    parser.add_argument("--without", nargs="*", default=[], metavar="VARIANT", help=f"of {', '.join(VARIANTS)}")
    options = parser.parse_args(arguments)
    turns, steps = (1, 2) if options.quick else (options.rounds, options.steps)
    variants = _installed({name: one for name, one in VARIANTS.items() if name not in options.without})
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if options.device == 'cuda' else 'CPU'}")
    for size in _sizes(options.quick):
        print(
            f"{size.kind}, {size.timesteps:,} timesteps, batch {size.batch}, {size.hidden:,} hidden, {size.precision}"
        )
        print(*lines(rounds(size, variants, turns, steps, options.device)), sep="\n", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # a Trainer's advice, run after run
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    main()
