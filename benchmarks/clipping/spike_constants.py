"""Which constants let Spike leave healthy runs alone and hold unstable ones.

    python -m benchmarks.clipping.spike_constants healthy    # gradient norms of healthy runs, then false clips by setting
    python -m benchmarks.clipping.spike_constants unstable   # survival of unstable recurrent networks, with and without Spike

Healthy: character language models (LSTM, GRU, RNN) and an MLP, Adam and SGD, with and without learning-rate warm-up,
batches from 1 to 32. Unstable: ReLU networks with a spectral radius or a learning rate too high.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_gradwatch.clip import StepReading
from lightning_gradwatch.clip.policies.spike import Spike

VOCABULARY = 96


def corpus() -> Tensor:
    """The standard library's own sources, as character codes."""
    folder = Path(json.__file__).parent.parent
    text = "".join(path.read_text(errors="ignore") for path in sorted(folder.glob("*.py"))[:40])
    return torch.tensor([min(max(ord(c) - 31, 0), VOCABULARY - 1) for c in text])


class LanguageModel(nn.Module):
    """Embedding, one recurrent layer, softmax."""

    def __init__(self, cell: str, hidden: int = 64, radius: float | None = None, nonlinearity: str = "tanh") -> None:
        super().__init__()
        kinds = {"LSTM": nn.LSTM, "GRU": nn.GRU}
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.rnn = kinds[cell](32, hidden) if cell in kinds else nn.RNN(32, hidden, nonlinearity=nonlinearity)
        self.head = nn.Linear(hidden, VOCABULARY)
        if radius is not None:
            nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=radius)  # pyright: ignore

    def loss(self, batch: Tensor) -> Tensor:
        """Cross-entropy of the next character; ``batch`` is (time, batch)."""
        out, _ = self.rnn(self.embedding(batch[:-1]))
        return nn.functional.cross_entropy(self.head(out).flatten(0, 1), batch[1:].flatten())


class MLP(nn.Module):
    """Classify the sign pattern of a random projection: learnable, and interpolated in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        self.register_buffer("teacher", torch.randn(20, 4))

    def loss(self, batch: Tensor) -> Tensor:
        """Cross-entropy; ``batch`` only says how many examples to draw."""
        x = torch.randn(batch.shape[1], 20)
        return nn.functional.cross_entropy(self.net(x), (x @ self.teacher).argmax(1))  # pyright: ignore


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(tensors).double())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Tensor, *, steps: int, batch: int, time_: int,
          warmup: int = 0, policy: Spike | None = None) -> Iterator[tuple[float, float, float]]:  # fmt: skip
    """Yield loss, gradient norm and the coefficient applied, step by step, until the loss is not finite."""
    rate = optimizer.param_groups[0]["lr"]
    parameters = list(model.parameters())
    for step in range(steps):
        if warmup:
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / warmup)
        starts = torch.randint(len(data) - time_ - 1, (batch,))
        loss = model.loss(torch.stack([data[s : s + time_ + 1] for s in starts.tolist()], 1))  # pyright: ignore
        optimizer.zero_grad()
        loss.backward()
        norm = norm_of([p.grad for p in parameters if p.grad is not None])
        coefficient = 1.0
        if policy is not None:
            if not math.isfinite(norm):  # AdaptiveClip skips such a step
                yield loss.item(), norm, 0.0
                continue
            size = norm_of([p.detach() for p in parameters]) if policy.wants_parameter_norm else None
            along = optimizer.param_groups[0]["lr"] if isinstance(optimizer, torch.optim.SGD) else None
            coefficient = policy.decide(StepReading(norm, parameter_norm=size, step_size=along)).coefficient
            for parameter in parameters:
                if parameter.grad is not None and coefficient < 1.0:
                    parameter.grad.mul_(coefficient)
        optimizer.step()
        yield loss.item(), norm, coefficient


def healthy_runs(steps: int) -> Iterator[tuple[str, list[float], list[int]]]:
    """Gradient norms of runs that need no clipping, and the steps that Spike clipped: up to the first of them the two are one."""
    data = corpus()
    rates = {("SGD", "LSTM"): 1.0, ("SGD", "GRU"): 0.5, ("SGD", "RNN"): 0.1, ("SGD", "MLP"): 0.1}
    for model, kind, batch, warmup in itertools.product(
        ("LSTM", "GRU", "RNN", "MLP"), ("Adam", "SGD"), (1, 4, 32), (0, 100)
    ):
        if batch == 4 and warmup:
            continue
        torch.manual_seed(batch + warmup)
        net = MLP() if model == "MLP" else LanguageModel(model)
        rate = rates.get((kind, model), 0.003) * (0.3 if batch == 1 else 1.0)
        optimizer = (
            torch.optim.Adam(net.parameters(), rate) if kind == "Adam" else torch.optim.SGD(net.parameters(), rate)
        )
        rows = list(train(net, optimizer, data, steps=steps, batch=batch, time_=32, warmup=warmup, policy=Spike()))
        clips = [step for step, (_, _, coefficient) in enumerate(rows) if coefficient < 1.0]
        yield f"{model} {kind} batch {batch} warm-up {warmup}", [norm for _, norm, _ in rows], clips


class Repeating(LanguageModel):
    """A small ReLU network, started too large, on sequences that repeat 0 … 15."""

    def __init__(self, radius: float) -> None:
        super().__init__("RNN", hidden=32, radius=radius, nonlinearity="relu")
        self.embedding, self.head = nn.Embedding(16, 16), nn.Linear(32, 16)
        self.rnn = nn.RNN(16, 32, nonlinearity="relu")
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=radius)  # pyright: ignore

    def loss(self, batch: Tensor) -> Tensor:
        """Cross-entropy of the next number; ``batch`` only says where to begin."""
        return super().loss((batch[:1] + torch.arange(41)[:, None]).remainder(16))


def unstable_runs(steps: int, make: type[Spike] | None) -> Iterator[tuple[str, float, float, int, int]]:
    """Name, first loss, mean of the last ten, steps clipped, steps skipped."""
    data = corpus()
    for (radius, rate), seed in itertools.product(((1.6, 0.3), (1.3, 1.0), (1.0, 2.0), (1.0, 3.0)), range(3, 7)):
        torch.manual_seed(seed)
        net = Repeating(radius)
        optimizer = torch.optim.SGD(net.parameters(), rate)
        rows = list(train(net, optimizer, data, steps=steps, batch=4, time_=1, policy=make() if make else None))
        losses, coefficients = [row[0] for row in rows], [row[2] for row in rows]
        clipped, skipped = sum(0 < c < 1 for c in coefficients), sum(c == 0 for c in coefficients)
        yield f"radius {radius} rate {rate} seed {seed}", losses[0], sum(losses[-10:]) / 10, clipped, skipped


def main() -> None:
    torch.set_num_threads(1)
    started = time.time()
    if sys.argv[1:] == ["unstable"]:
        for label, make in (("none", None), ("spike", Spike)):
            for name, first, last, clipped, skipped in unstable_runs(120, make):
                print(
                    f"{label:5} {name:32} loss {first:.3g} -> {last:.3g} clipped {clipped} skipped {skipped}",
                    flush=True,
                )
    else:
        for name, trace, clips in healthy_runs(500):
            print(json.dumps({"name": name, "clips": clips, "largest": max(trace)}), flush=True)
    print(f"# {time.time() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
