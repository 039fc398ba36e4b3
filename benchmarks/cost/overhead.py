"""What watching costs: GradWatch beside the bare run, ``detect_anomaly`` and a model unrolled with cells and ``retain_grad``.

    python -m benchmarks.cost.overhead [--kind LSTM] [--steps N] [--rounds N] [--json FILE]

Everything runs in one process on one machine, interleaved step by step, so that its noise hits all alike; figures are medians
of paired ratios with the 25th and 75th percentile. Each variant has its own model, optimizer and Trainer callbacks' hooks,
driven in the order in which the Trainer calls them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.callbacks.anomaly.rollback import State
from lightning_gradwatch.recurrent import Capture, sweep

TIME, BATCH, HIDDEN, EMBEDDING, WORDS, LAYERS = 128, 32, 256, 128, 1000, 2


class LanguageModel(pl.LightningModule):
    """A 2-layer language model, of an LSTM unless told otherwise."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, EMBEDDING)
        self.rnn: nn.Module = kind(EMBEDDING, hidden, LAYERS, batch_first=True)
        self.head = nn.Linear(hidden, WORDS)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        output, _ = self.rnn(self.embedding(batch[:, :-1]))
        return nn.functional.cross_entropy(self.head(output).flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class UnrolledLanguageModel(LanguageModel):
    """The same, unrolled with nn.LSTMCell, every hidden state retaining its gradient: what one would write by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.ModuleList(nn.LSTMCell(EMBEDDING if i == 0 else HIDDEN, HIDDEN) for i in range(LAYERS))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x = self.embedding(batch[:, :-1])
        state = [(x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), HIDDEN)) for _ in self.rnn]
        outputs, self.kept = [], []
        for t in range(x.shape[1]):
            value = x[:, t]
            for i, cell in enumerate(self.rnn):
                state[i] = cell(value, state[i])
                value = state[i][0]
                value.retain_grad()
                self.kept.append(value)
            outputs.append(value)
        logits = self.head(torch.stack(outputs, 1))
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def on_after_backward(self) -> None:
        self.norms = torch.stack([h.grad.norm(dim=-1).median() for h in self.kept])
        self.kept = []


def batches(count: int, batch: int = BATCH, timesteps: int = TIME) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, WORDS, (batch, timesteps + 1), generator=generator) for _ in range(count)]


def train(model: pl.LightningModule, data: list[Tensor], callbacks: list[pl.Callback], anomaly: bool) -> list[float]:
    """Seconds of each training step of one Trainer over ``data``, callbacks' hooks included."""
    first, last = pl.Callback(), pl.Callback()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[first, *callbacks, last], detect_anomaly=anomaly,
    )  # fmt: skip
    starts, ends = [], []
    first.on_train_batch_start = lambda *_: starts.append(time.perf_counter())  # type: ignore[method-assign]
    last.on_train_batch_end = lambda *_: ends.append(time.perf_counter())  # type: ignore[method-assign]
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return [end - start for start, end in zip(starts, ends, strict=True)]


def interleaved(
    variants: dict[str, Callable[[list[Tensor]], list[float]]], rounds: int, steps: int
) -> dict[str, list[float]]:
    """Rounds of ``steps`` training steps of each variant in turn; the first step of a round warms up and is left out."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(statistics.median(variants[name](batches(steps + 1))[1:]))
    return taken


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "p25": low, "p75": high}


def ratio(values: list[float], base: list[float]) -> dict[str, float]:
    """Median and quartiles of the paired ratios."""
    return spread([value / other for value, other in zip(values, base, strict=True)])


def alternate_steps(steps: int, kind: type[nn.RNNBase]) -> dict[str, dict[str, float]]:
    """GradWatch's ordinary step against the bare one, alternating within one run; and the sweep of a sampled step.

    A claim of 1 % drowns in the difference of two runs, so one model is trained, and on every second step its hooks work.
    """
    bare, watched = alternate(10**9, steps, kind)
    sampled = [on - off for off, on in zip(*alternate(1, max(steps // 4, 5), kind), strict=True)]
    step = statistics.median(bare)
    pairs, sweeps = ratio(watched, bare), spread([seconds / step for seconds in sampled])
    ready = {
        f"ordinary step with {text} / bare step": ratio(
            *reversed(alternate(10**9, max(steps // 2, 5), kind, **options))
        )
        for text, options in READY.items()
    }
    return {
        "ordinary step / bare step": pairs,
        **ready,
        'a copy of the state for on_anomaly="rollback" / bare step': spread([c / step for c in copies(20, kind)]),
        "what a sampled step adds / bare step": sweeps,
        **{
            f"of it the sweep, {text} / bare step": spread([c / step for c in each])
            for text, each in sweep_costs(10, kind).items()
        },
        "at the defaults (ordinary + sampled / 50)": {name: pairs[name] + sweeps["median"] / 50 for name in pairs},
        "bare step, milliseconds": spread([1e3 * seconds for seconds in bare]),
    }


def sweep_costs(count: int, kind: type[nn.RNNBase]) -> dict[str, list[float]]:
    """CPU seconds of each sweep of one call: at the defaults, and with less of what it takes."""
    model = LanguageModel(kind)
    capture = Capture({"rnn": model.rnn})
    capture.attach()
    capture.begin()
    model.training_step(batches(1)[0], 0).backward()
    (call,) = capture.read_calls()
    variants = {
        "at the defaults": {},
        "1 anchor": {"anchors": 1},
        "no anchor": {"anchors": 0},
        "4 sequences": {"max_sequences": 4},
    }
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(count):
        for name, options in variants.items():
            begun = time.process_time()
            sweep(call, **options)
            taken[name].append(time.process_time() - begun)
    capture.detach()
    return taken


def copies(count: int, kind: type[nn.RNNBase]) -> list[float]:
    """Seconds of each copy of weights and optimizer state."""
    model, taken = LanguageModel(kind), list[float]()
    with tempfile.TemporaryDirectory() as folder, _attached(model, Path(folder), 50, {}) as (_, trainer):
        for _ in range(count):
            begun = time.perf_counter()
            State.of(trainer, model)
            taken.append(time.perf_counter() - begun)
    return taken


WARM_UP = 6
READY: dict[str, dict[str, Any]] = {
    'on_anomaly="skip"': {"on_anomaly": "skip"},
    'on_anomaly="rollback"': {"on_anomaly": "rollback"},
    "bundles=1": {"bundles": 1},
}
"""Ready to act at an anomaly that does not come."""


def alternate(
    every_n_steps: int, steps: int, kind: type[nn.RNNBase], **options: Any
) -> tuple[list[float], list[float]]:
    """CPU seconds of ``steps`` bare and ``steps`` watched training steps in turn, the callback's hooks called as the Trainer does."""
    model = LanguageModel(kind)
    optimizer = model.configure_optimizers()
    data = batches(8)
    bare: list[float] = []
    watched: list[float] = []
    with tempfile.TemporaryDirectory() as folder, _attached(model, Path(folder), every_n_steps, options) as found:
        watch, trainer = found
        for i in range(2 * (steps + WARM_UP)):
            batch, on = data[i % 8], i % 2 == 1
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
            if i >= 2 * WARM_UP:
                (watched if on else bare).append(time.process_time() - begun)
    return bare, watched


@contextlib.contextmanager
def _attached(
    model: pl.LightningModule, folder: Path, every_n_steps: int, options: dict[str, Any]
) -> Iterator[tuple[GradWatch, pl.Trainer]]:
    """A GradWatch on a Trainer that has been set up by a fit."""
    watch = GradWatch(every_n_steps=every_n_steps, dirpath=folder / "run", summary=False, **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, torch.utils.data.DataLoader(batches(2), batch_size=None))
    trainer.state.status = TrainerStatus.RUNNING  # the hooks of a fit that is over do nothing
    watch.on_train_start(trainer, model)
    yield watch, trainer
    watch.teardown(trainer, model, "fit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=["LSTM", "GRU", "RNN"], default="LSTM")
    parser.add_argument("--steps", type=int, default=100, help="pairs of alternating steps")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of whole Trainer runs; 0 for none")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU time counts what every thread spends, waiting for one another included
    kind = getattr(nn, options.kind)
    figures: dict[str, object] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "kind": options.kind}
    figures["alternating steps"] = alternate_steps(options.steps, kind)
    if options.rounds:
        figures["whole Trainer runs, ordinary steps / bare"] = whole_runs(options.rounds, kind)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def whole_runs(rounds: int, kind: type[nn.RNNBase]) -> dict[str, dict[str, float]]:
    """Each variant's ordinary steps in a Trainer of its own."""
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(10**6))
        variants = {
            "bare": lambda data: train(LanguageModel(kind), data, [], False),
            "GradWatch at its defaults": lambda data: train(
                LanguageModel(kind), data, [GradWatch(dirpath=Path(folder) / str(next(count)), summary=False)], False
            ),
            "detect_anomaly": lambda data: train(LanguageModel(kind), data, [], True),
            "an LSTM unrolled with retain_grad": lambda data: train(UnrolledLanguageModel(), data, [], False),
        }
        taken = interleaved(variants, rounds, 6)
    return {name: ratio(values, taken["bare"]) for name, values in taken.items() if name != "bare"}


if __name__ == "__main__":
    sys.exit(main())
