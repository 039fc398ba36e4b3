"""The networks of the first-hour campaign, as somebody new to the package might write them, each with its mistake."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader

from lightning_gradwatch import tap

WIDTH, HIDDEN, WORDS, BATCH = 4, 16, 12, 16

Step = Callable[["Model", Any], Tensor]


class Model(pl.LightningModule):
    """Trains ``net`` on the loss that ``step`` makes of it and a batch.

    Args:
        net: the parts, by name.
        step: from this model and a batch to the loss.
        optimizer, lr: a name in ``torch.optim``, and its learning rate.
    """

    def __init__(self, net: dict[str, nn.Module], step: Step, optimizer: str = "SGD", lr: float = 1e-2) -> None:
        super().__init__()
        self.net, self.step, self.optimizer, self.lr = nn.ModuleDict(net), step, optimizer, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr)


def batches(make: Callable[[torch.Generator], Any], count: int = 8) -> DataLoader:
    """``count`` batches, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return DataLoader([make(generator) for _ in range(count)], batch_size=None)


def series(timesteps: int = 20, count: int = 8) -> DataLoader:
    """Noise ``(batch, time, width)`` with a target that its last timestep decides."""

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(BATCH, timesteps, WIDTH, generator=generator)
        return x, x[:, -1].sum(1, keepdim=True)

    return batches(make, count)


def words(timesteps: int = 16, count: int = 8) -> DataLoader:
    """Random words ``(batch, time)``, none of them the padding 0."""
    return batches(lambda generator: torch.randint(1, WORDS, (BATCH, timesteps), generator=generator), count)


def regression(cell: str = "LSTM", *, batch_first: bool = True, **options: Any) -> Model:
    """A network that reads its last output."""

    def step(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return mse_loss(model.net["head"](model.net["rnn"](x)[0][:, -1]), y)

    rnn = getattr(nn, cell)(WIDTH, HIDDEN, batch_first=batch_first)
    return Model({"rnn": rnn, "head": nn.Linear(HIDDEN, 1)}, step, **options)


def moving_target(**options: Any) -> Model:
    """A plain recurrent network whose steps are too long to come to rest."""
    torch.manual_seed(0)

    def step(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return mse_loss(model.net["head"](model.net["rnn"](x)[0][:, -1]), y)

    return Model({"rnn": nn.RNN(WIDTH, 8, batch_first=True), "head": nn.Linear(8, 1)}, step, **options)


def translation(hidden: int = HIDDEN, **options: Any) -> Model:
    """A sequence-to-sequence GRU with attention that turns sentences around."""
    width = hidden // 2

    def step(model: Model, sentences: Tensor) -> Tensor:
        net, target = model.net, sentences.flip(1)
        encoded, state = net["encoder"](net["embedding"](sentences))
        begun = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)
        decoded, _ = net["decoder"](net["embedding"](begun), state)
        weights = (decoded @ encoded.transpose(1, 2) / math.sqrt(hidden)).softmax(-1)
        logits = net["head"](torch.cat([decoded, weights @ encoded], -1))
        return cross_entropy(logits.flatten(0, 1), target.flatten())

    net = {
        "embedding": nn.Embedding(WORDS, width),
        "encoder": nn.GRU(width, hidden, batch_first=True),
        "decoder": nn.GRU(width, hidden, batch_first=True),
        "head": nn.Linear(2 * hidden, WORDS),
    }
    return Model(net, step, **options)


def tagger() -> Model:
    """A bidirectional tagger over padded, unpacked sentences, whose loss ignores the padding."""

    def step(model: Model, sentences: Tensor) -> Tensor:
        output, _ = model.net["rnn"](model.net["embedding"](sentences))
        tags = torch.where(sentences > 0, sentences % 3, -100)
        return cross_entropy(model.net["head"](output).flatten(0, 1), tags.flatten(), ignore_index=-100)

    net = {
        "embedding": nn.Embedding(WORDS, WIDTH),
        "rnn": nn.LSTM(WIDTH, HIDDEN, batch_first=True, bidirectional=True),
        "head": nn.Linear(2 * HIDDEN, 3),
    }
    return Model(net, step, "Adam")


def padded(timesteps: int = 40, longest: int = 24) -> DataLoader:
    """Sentences of 8 to ``longest`` words, 0 behind them."""

    def make(generator: torch.Generator) -> Tensor:
        sentences = torch.randint(1, WORDS, (BATCH, timesteps), generator=generator)
        lengths = torch.randint(8, longest + 1, (BATCH, 1), generator=generator)
        return sentences.where(torch.arange(timesteps) < lengths, 0)

    return batches(make)


def label_first(timesteps: int, shown: int = 4) -> tuple[Model, DataLoader]:
    """A classifier whose label is the first word, with the loss at the last."""

    def step(model: Model, sentences: Tensor) -> Tensor:
        output, _ = model.net["rnn"](model.net["embedding"](sentences))
        return cross_entropy(model.net["head"](output[:, -1]), sentences[:, 0] % shown)

    rnn = nn.LSTM(WIDTH, HIDDEN, batch_first=True)
    net = {"embedding": nn.Embedding(WORDS, WIDTH), "rnn": rnn, "head": nn.Linear(HIDDEN, shown)}
    return Model(net, step, "Adam", 1e-3), words(timesteps)


def learned() -> Model:
    """A network with a short memory that needs none, and has learned all there is: it sums up the last input."""
    model = regression("RNN", optimizer="Adam", lr=1e-2)
    with torch.no_grad():
        model.net["rnn"].weight_hh_l0.mul_(0.05)
    return model


class Integrator(nn.Module):
    """A state of two halves: one that forgets at once, one that forgets by 2 % a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.x(x) + h * torch.tensor([0.0, 0.98])


def plateau() -> tuple[Model, DataLoader]:
    """Its lag curve lies flat, near 1 %, from the second lag on: a little more or less moves the horizon far."""

    def step(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, weight = batch
        h = x.new_zeros(len(x), 2)
        for t in range(x.shape[1]):
            h = model.net["cell"](x[:, t], h)
        return (h[:, 0] + weight * h[:, 1]).mean()

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weight = 0.0103 + 0.004 * torch.rand((), generator=generator)
        return torch.randn(BATCH, 50, WIDTH, generator=generator), weight

    return Model({"cell": Integrator()}, step, lr=1e-4), batches(make, 24)


# ---------------------------------------------------------------- a state detached at every step


class OwnCell(nn.Module):
    """h ← tanh(W x + U h)."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + self.h(h))


def by_hand(cell: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> Model:
    """A loop over the timesteps, to the states at all of them, and a loss on each."""

    def step(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        states = run(model.net["cell"], x)
        return mse_loss(model.net["head"](states).mean(1), y)

    return Model({"cell": cell, "head": nn.Linear(HIDDEN, 1)}, step)


def detached_lstm_cell(cell: nn.Module, x: Tensor) -> Tensor:
    """An LSTMCell, h and c detached."""
    h, c, seen = *x.new_zeros(2, len(x), HIDDEN), []
    for t in range(x.shape[1]):
        h, c = cell(x[:, t], (h.detach(), c.detach()))
        seen.append(h)
    return torch.stack(seen, 1)


def detached_own_cell(cell: nn.Module, x: Tensor) -> Tensor:
    """A cell of one's own, and nothing marked."""
    return looped(cell, x, lambda h: h.detach())


def tapped_before_detached(cell: nn.Module, x: Tensor) -> Tensor:
    """The tap marks what is detached afterwards."""
    return looped(cell, x, lambda h: tap(h, name="mine").detach())


def detached_before_tapped(cell: nn.Module, x: Tensor) -> Tensor:
    """The tap marks what is detached already."""
    return looped(cell, x, lambda h: tap(h.detach(), name="mine"))


def detached_fused(rnn: nn.Module, x: Tensor) -> Tensor:
    """An nn.LSTM fed one timestep at a time."""
    state, seen = None, []
    for t in range(x.shape[1]):
        output, (h, c) = rnn(x[:, t : t + 1], state)
        state = h.detach(), c.detach()
        seen.append(output[:, 0])
    return torch.stack(seen, 1)


def tapped(cell: nn.Module, x: Tensor) -> Tensor:
    """No mistake: a cell that is found by itself, and marked as well."""
    return looped(cell, x, lambda h: tap(h, name="mine"))


def looped(cell: nn.Module, x: Tensor, pass_on: Callable[[Tensor], Tensor]) -> Tensor:
    """States ``(batch, time, hidden)`` of a loop that hands on ``pass_on(h)``."""
    h, seen = x.new_zeros(len(x), HIDDEN), []
    for t in range(x.shape[1]):
        h = cell(x[:, t], h)
        seen.append(h)
        h = pass_on(h)
    return torch.stack(seen, 1)


# ---------------------------------------------------------------- what happens in the midst of a training


class Happens(pl.Callback):
    """Does something to the model before one batch, or before each from there on."""

    def __init__(self, what: Callable[[Model, Any], None], at: int = 12) -> None:
        self.what, self.at = what, at

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            with torch.no_grad():
                self.what(pl_module, batch)


def spoil_head(model: Model, batch: Any) -> None:
    """An infinite weight behind the recurrent part."""
    model.net["head"].weight[0, 5] = math.inf


def spoil_input(model: Model, batch: Any) -> None:
    """A NaN in one sequence of one batch."""
    batch[0][3, 4, 1] = math.nan


def interrupt(model: Model, batch: Any) -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt


def fail(model: Model, batch: Any) -> None:
    """A mistake of the user's own."""
    raise ValueError("the user's own mistake")
