"""Ways to train without a Trainer: each makes its model and optimizers, and yields after every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.versions import cpu_scaler, needs_fused


class Tagger(nn.Module):
    """A fused module with a cell of PyTorch's in a loop behind it."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, 2, batch_first=True, dropout=dropout)
        self.cell = nn.GRUCell(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        h = output.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = self.cell(output[:, t], h)
        return self.head(h)


class OneStep(nn.Module):
    """Called once a timestep, with the state in the caller's hands."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.cell(x, state)
        return self.head(state[0]), state


@dataclass
class Loop:
    """A training under way.

    Args:
        model: as the loop calls it; ``optimizers`` are its.
        train: makes the batches, and yields after each.
    """

    model: nn.Module
    optimizers: list[Any]
    train: Callable[[], Iterator[Any]]
    options: dict[str, Any] = field(default_factory=dict)


BATCHES = 6


def data(batch: int = 4, length: int = 7) -> Tensor:
    return torch.randn(batch, length, 4)


def _loss(model: nn.Module) -> Tensor:
    return model(data()).pow(2).mean()


def plain(model: nn.Module | None = None, **options: Any) -> Loop:
    """Nothing but a loop."""
    model = model or Tagger()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, **options)

    def train() -> Iterator[None]:
        for _ in range(BATCHES):
            optimizer.zero_grad()
            _loss(model).backward()
            optimizer.step()
            yield

    return Loop(model, [optimizer], train)


def with_dropout() -> Loop:
    """Masks between the layers."""
    return plain(Tagger(dropout=0.5))


def accumulating() -> Loop:
    """Three backward passes for each step."""
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def train() -> Iterator[None]:
        for _ in range(BATCHES):
            for _ in range(3):
                (_loss(model) / 3).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            yield

    return Loop(model, [optimizer], train, {"accumulate_grad_batches": 3})


def two_optimizers() -> Loop:
    """One after the other, each with a loss of its own."""
    model = nn.ModuleDict({"one": Tagger(), "other": Tagger()})
    optimizers = [torch.optim.Adam(part.parameters(), 1e-2) for part in model.values()]

    def train() -> Iterator[None]:
        for _ in range(BATCHES):
            for part, optimizer in zip(model.values(), optimizers, strict=True):
                optimizer.zero_grad()
                _loss(part).backward()
                optimizer.step()
            yield

    return Loop(model, optimizers, train)


def joint_optimizers() -> Loop:
    """Two optimizers step after one backward pass."""
    model = Tagger()
    optimizers = [
        torch.optim.Adam(model.rnn.parameters(), 1e-2),
        torch.optim.SGD([*model.cell.parameters(), *model.head.parameters()], 0.1),
    ]

    def train() -> Iterator[None]:
        for _ in range(BATCHES):
            model.zero_grad()
            _loss(model).backward()
            for optimizer in optimizers:
                optimizer.step()
            yield

    return Loop(model, optimizers, train)


def scaled() -> Loop:
    """A gradient scaler, as mixed precision has it."""
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scaler = cpu_scaler(init_scale=1024.0)

    def train() -> Iterator[None]:
        for _ in range(BATCHES):
            optimizer.zero_grad()
            scaler.scale(_loss(model)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            yield

    return Loop(model, [optimizer], train)


def closure() -> Loop:
    """LBFGS evaluates a closure again and again."""
    model = Tagger()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe")

    def train() -> Iterator[None]:
        for _ in range(3):
            x = data()

            def evaluate(x: Tensor = x) -> Tensor:
                optimizer.zero_grad()
                loss = model(x).pow(2).mean()
                loss.backward()
                return loss

            optimizer.step(evaluate)
            yield

    return Loop(model, [optimizer], train)


def step_by_step() -> Loop:
    """The model is called once a timestep, and truncated every seven."""
    model = OneStep()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def train() -> Iterator[None]:
        state = None
        for _ in range(BATCHES):
            optimizer.zero_grad()
            losses: list[Tensor] = []
            for x in data().unbind(1):
                output, state = model(x, state)
                losses.append(output.pow(2).mean())
            torch.stack(losses).mean().backward()
            state = tuple(s.detach() for s in state)
            optimizer.step()
            yield

    return Loop(model, [optimizer], train)


def validating() -> Loop:
    """Between the steps it is evaluated, with and without ``no_grad``, in either mode, and one that forgets both."""
    model = Tagger(dropout=0.3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def train() -> Iterator[None]:
        for _ in range(BATCHES):
            optimizer.zero_grad()
            _loss(model).backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                _loss(model)
            _loss(model)
            model.train()
            _loss(model)
            yield

    return Loop(model, [optimizer], train)


def with_a_penalty() -> Loop:
    """A gradient penalty, and a second backward pass through the same graph."""
    model = nn.GRU(4, 8, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def train() -> Iterator[None]:
        for _ in range(BATCHES):
            optimizer.zero_grad()
            x = data().requires_grad_()
            output = model(x)[0].pow(2).mean()
            (slope,) = torch.autograd.grad(output, x, create_graph=True)
            output.backward(retain_graph=True)
            slope.pow(2).sum().backward()
            optimizer.step()
            yield

    return Loop(model, [optimizer], train)


def fabric(precision: Any = "32-true") -> Loop:
    """Lightning Fabric's own wrappers."""
    from lightning.fabric import Fabric

    owner = Fabric(accelerator="cpu", devices=1, precision=precision)
    owner.launch()
    model = Tagger()
    wrapped, optimizer = owner.setup(model, torch.optim.Adam(model.parameters(), 1e-2))

    def train() -> Iterator[None]:
        for _ in range(BATCHES):
            optimizer.zero_grad()
            owner.backward(_loss(wrapped))
            optimizer.step()
            yield

    return Loop(wrapped, [optimizer], train)


WAYS = [
    plain,
    with_dropout,
    accumulating,
    two_optimizers,
    joint_optimizers,
    scaled,
    closure,
    step_by_step,
    validating,
    with_a_penalty,
    fabric,
]


def fused() -> Loop:
    """An optimizer that unscales in its own step."""
    needs_fused()
    return plain(fused=True)


WAYS.append(fused)
