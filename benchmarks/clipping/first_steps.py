"""Does AdaptiveClip leave the first steps of healthy runs alone, when little is known of their norms?

    python -m benchmarks.clipping.first_steps [--runs N] [--steps N] [--first-seed N]

Each run draws a cell, sizes, a task, an optimizer and a learning rate that is ordinary for it. Some tasks have gradients that are next to
nothing in some batches and not in others: a classification whose head's bias is what is learned first, targets with a mean of zero.
A run is healthy if without clipping the mean loss of its last third is at most twice that of its first. Printed is each healthy run in
which the default policy clipped a step, with the steps, their norms and coefficients.
"""

from __future__ import annotations

import argparse
import random

import torch
from torch import Tensor, nn

from benchmarks.clipping.compare import norm_of
from benchmarks.clipping.methods import adaptive_clip, close, nothing

SYMBOLS, WIDTH = 40, 16
OUTPUTS = {"classify": 5, "binary": 2, "regress": 1, "zero mean": 1, "predict": SYMBOLS, "sum so far": 1}
RATES = {
    "Adam": (1e-4, 1e-3, 3e-3),
    "AdamW": (1e-4, 1e-3, 3e-3),
    "NAdam": (1e-3,),
    "RMSprop": (1e-4, 1e-3),
    "SGD": (0.003, 0.01, 0.03, 0.1),
}


class Run:
    """One training, drawn by its seed."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.cell, self.task = draw.choice(["LSTM", "GRU", "RNN"]), draw.choice(list(OUTPUTS))
        self.batch, self.length = draw.choice([1, 2, 4, 8, 16, 32]), draw.choice([5, 20, 50, 100])
        self.optimizer = draw.choice(list(RATES))
        self.rate, self.warmup = draw.choice(RATES[self.optimizer]), draw.choice([0, 0, 20])
        self.scale = draw.choice([1.0, 1.0, 1.0, 10.0])
        layers, hidden, both = draw.choice([1, 2, 3]), draw.choice([8, 16, 32, 64, 128]), draw.random() < 0.25
        self.embedding = nn.Embedding(SYMBOLS, WIDTH)
        self.rnn = getattr(nn, self.cell)(WIDTH, hidden, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(hidden * (1 + both), OUTPUTS[self.task])
        self.network = nn.ModuleList([self.embedding, self.rnn, self.head])

    def __str__(self) -> str:
        return f"{self.cell}, {self.task}, {self.batch} × {self.length}, {self.optimizer} {self.rate:g}, warm-up {self.warmup}"

    def loss(self) -> Tensor:
        """Of a fresh batch."""
        if self.task in ("binary", "zero mean"):
            x = torch.randn(self.batch, self.length, WIDTH)
            answer, target = self.head(self.rnn(x)[0][:, -1]), x[:, : max(self.length // 5, 1), 0].mean(1)
            if self.task == "binary":
                return nn.functional.cross_entropy(answer, (target > 0).long())
            return nn.functional.mse_loss(answer[:, 0], self.scale * target)
        x = torch.randint(SYMBOLS, (self.batch, self.length + 1))
        if self.task == "predict":
            x = (x[:, :1] + torch.arange(self.length + 1) * torch.randint(1, 4, (self.batch, 1))).remainder(SYMBOLS)
        answers = self.head(self.rnn(self.embedding(x[:, :-1]))[0])
        values = x[:, :-1].float() / (SYMBOLS / 2) - 1
        if self.task == "predict":
            return nn.functional.cross_entropy(answers.flatten(0, 1), x[:, 1:].flatten())
        if self.task == "classify":
            return nn.functional.cross_entropy(answers[:, -1], x[:, -2].remainder(OUTPUTS["classify"]))
        if self.task == "regress":
            return nn.functional.mse_loss(answers[:, -1, 0], self.scale * values.mean(1))
        return nn.functional.mse_loss(answers[..., 0], self.scale / 5 * values.cumsum(1))

    def train(self, steps: int, policy: str | None) -> tuple[list[float], list[str]]:
        """Returns the losses, and what was clipped."""
        optimizer = getattr(torch.optim, self.optimizer)(self.network.parameters(), self.rate)
        act = adaptive_clip(policy)(self.network, optimizer) if policy else nothing(self.network, optimizer)
        losses: list[float] = []
        found: list[str] = []
        for step in range(steps):
            if self.warmup:
                optimizer.param_groups[0]["lr"] = self.rate * min(1.0, (step + 1) / self.warmup)
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            losses.append(loss.item())
            before = norm_of(self.network)
            act(loss)
            after = norm_of(self.network)
            if after < before * (1 - 1e-5):
                found.append(f"{step}: {before:.3g} × {after / before:.2g}")
            optimizer.step()
        close(act)
        return losses, found


def judge(seed: int, steps: int) -> tuple[bool, list[str]]:
    """Whether the run of a seed is healthy, and what was clipped in it."""
    losses, _ = Run(seed).train(steps, None)
    third = steps // 3
    _, found = Run(seed).train(steps, "spike")
    return sum(losses[-third:]) <= 2 * sum(losses[:third]), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    healthy = touched = 0
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.runs):
        well, found = judge(seed, arguments.steps)
        healthy += well
        touched += well and bool(found)
        if well and found:
            print(f"seed {seed}, {Run(seed)}: {'; '.join(found)}", flush=True)
    print(
        f"{touched} of {healthy} healthy runs had a step clipped in their first {arguments.steps}; {arguments.runs} runs"
    )


if __name__ == "__main__":
    main()
