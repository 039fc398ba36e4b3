"""Losses that rise or leap by their own nature are neither divergence nor explosion; true divergences among them are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import Event, EventKind, GradWatch
from tests.models import trainer

WIDTH, HIDDEN, BATCH = 3, 12, 16
ALARMS = (EventKind.DIVERGED, EventKind.EXPLODING_GRADIENT)


class Task(pl.LightningModule):
    """One loss a batch, of a recurrent network and a head."""

    lr, steps, optimizer = 3e-3, 120, "Adam"

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(WIDTH, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 2)
        self.losses: list[float] = []

    def read(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch[0], batch_idx)
        self.losses.append(loss.item())
        return loss

    def loss(self, x: Tensor, step: int) -> Tensor:
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        return getattr(torch.optim, self.optimizer)(self.parameters(), self.lr)


class Returns(Task):
    """The value of a policy that gets better: its returns, and so the squared error, grow a hundredfold."""

    def loss(self, x: Tensor, step: int) -> Tensor:
        returns = (1 + 0.3 * step) * (1 + 0.1 * x[:, :, 0].sum(1))
        return (self.read(x)[:, 0] - returns).square().mean()


class PolicyGradient(Task):
    """REINFORCE: minus the log-probability of what was done times its return, which may have either sign."""

    def loss(self, x: Tensor, step: int) -> Tensor:
        chosen = torch.distributions.Categorical(logits=self.read(x))
        action = chosen.sample()
        reward = torch.where(action == (x[:, -1, 0] > 0), 1.0, -1.0) * (1 + 0.2 * step)
        return -(chosen.log_prob(action) * reward).mean()


class Annealed(Task):
    """A variational loss whose KL term is weighted from 0 to 1 within 80 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_scale, self.decode = nn.Linear(HIDDEN, 4), nn.Linear(HIDDEN, 4), nn.Linear(4, WIDTH)

    def loss(self, x: Tensor, step: int) -> Tensor:
        h = self.rnn(x)[0][:, -1]
        mean, log_scale = 6 * self.mean(h), self.log_scale(h)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1).mean()
        return (self.decode(z) - 0.1 * x[:, -1]).square().mean() + min(1.0, step / 80) * 20 * kl


class Adversarial(Task):
    """A network and its opponent in turn, one optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.opponent = nn.GRU(WIDTH, HIDDEN, batch_first=True)
        self.judge, self.make = nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, WIDTH)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, (first, second) = batch[0], self.optimizers()
        fake = self.make(self.rnn(torch.randn_like(x))[0])
        for optimizer, score in (
            (second, lambda: self._score(x.cumsum(1), 1.0) + self._score(fake.detach(), 0.0)),
            (first, lambda: self._score(fake, 1.0)),
        ):
            loss = score()
            self.losses.append(loss.item())
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def _score(self, x: Tensor, real: float) -> Tensor:
        logits = self.judge(self.opponent(x)[0][:, -1])
        return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    def configure_optimizers(self) -> Any:
        own = [*self.rnn.parameters(), *self.make.parameters()]
        other = [*self.opponent.parameters(), *self.judge.parameters()]
        return torch.optim.Adam(own, 1e-3), torch.optim.Adam(other, 5e-3)


class Summed(Task):
    """The sum over sequences of 2 to 200 timesteps, a length a batch."""

    def loss(self, x: Tensor, step: int) -> Tensor:
        length = int(2 * 100 ** (((step * 7919) % 101) / 101))
        x = x.repeat(1, math.ceil(length / x.shape[1]), 1)[:, :length]
        logits = self.head(self.rnn(x)[0])
        return functional.cross_entropy(logits.flatten(0, 1), (x[..., 0] > 0).long().flatten(), reduction="sum")


class Rare(Task):
    """One of fifty examples is of a class that weighs a thousand times as much."""

    def loss(self, x: Tensor, step: int) -> Tensor:
        y = (x[:, 0, 0] > 2.05).long()
        return functional.cross_entropy(self.read(x), y, weight=torch.tensor([1.0, 1000.0]), reduction="sum") / len(x)


class Mislabelled(Task):
    """A loss that is nearly 0 but for the few batches that hold a wrong label."""

    lr = 2e-2

    def loss(self, x: Tensor, step: int) -> Tensor:
        y = (x[:, -1, 0] > 0).long()
        x = x + 4 * x[..., :1].sign()  # easy
        if step > 60 and step % 25 == 0:
            y = torch.cat([1 - y[:1], y[1:]])
        return functional.cross_entropy(self.read(x), y)


class Weighted(Task):
    """Multiplied a hundredfold from step 60 on."""

    def loss(self, x: Tensor, step: int) -> Tensor:
        return (self.read(x)[:, 0] - x[:, -1, 0]).square().mean() * (100 if step >= 60 else 1)


class Contrastive(Task):
    """InfoNCE, whose temperature is trained and falls."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def loss(self, x: Tensor, step: int) -> Tensor:
        noisy = x + (0.05 if step < 80 else 1.0) * torch.randn_like(x)
        a, b = (functional.normalize(self.rnn(one)[0][:, -1], dim=1) for one in (x, noisy))
        return functional.cross_entropy(30 * self.log_scale.exp() * a @ b.T, torch.arange(len(x)))


class Curriculum(Task):
    """Sequences grow from 3 to 60 timesteps, the numbers to be summed with them."""

    lr = 1e-3

    def loss(self, x: Tensor, step: int) -> Tensor:
        length = 3 + 19 * (step // 50)
        x = x.repeat(1, 6, 1)[:, :length]
        return (self.read(x)[:, 0] - x[:, :, 0].sum(1)).square().mean()


class EasyFirst(Task):
    """The first batches have targets of 0, which an untrained head that begins with zeros predicts nearly."""

    easy = 4

    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)

    def loss(self, x: Tensor, step: int) -> Tensor:
        return (self.read(x)[:, 0] - (0 if step < self.easy else 1) * x[:, -1, 0]).square().mean()


class HardLater(EasyFirst):
    """The same for twelve batches: what comes then leaps, and stays."""

    easy = 12


class SmallStart(Annealed):
    """Weights that begin a hundred times smaller than PyTorch's, and a loss that rises meanwhile."""

    lr = 1e-2

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(0.01)

    def loss(self, x: Tensor, step: int) -> Tensor:
        target = (1 + 0.5 * min(step, 60)) * x[:, -1, 0]
        return (self.read(x)[:, 0] - target).square().mean()


@dataclass(frozen=True)
class Told:
    losses: list[float]
    alarms: list[Event]
    said: str


def fit(tmp_path, make: Callable[[], Task], *, seed: int = 0, **settings: Any) -> Told:
    torch.manual_seed(seed)
    model = make()
    for name, value in settings.items():
        setattr(model, name, value)
    data = DataLoader(TensorDataset(torch.randn(BATCH * model.steps, 10, WIDTH)), BATCH)
    watch = GradWatch(dirpath=tmp_path / "run", every_n_steps=10)
    steps = model.steps * (2 if isinstance(model, Adversarial) else 1)
    trainer(tmp_path, [watch], max_steps=steps).fit(model, data)
    alarms = [event for event in watch.events if event.kind in ALARMS and event.action is None]
    return Told(model.losses, alarms, watch.verdicts[0].line)


HEALTHY = (
    Returns, PolicyGradient, Annealed, Adversarial, Summed, Rare, Mislabelled, Weighted, Contrastive, Curriculum, EasyFirst,
    HardLater, SmallStart,
)  # fmt: skip


@pytest.mark.parametrize("make", HEALTHY)
def test_a_loss_that_rises_by_its_nature_is_no_divergence_and_no_explosion(make, tmp_path) -> None:
    """Neither event, and no verdict that says so."""
    told = fit(tmp_path, make, seed=1)
    assert told.alarms == []
    assert "diverged" not in told.said


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (Returns, {"lr": 3.0}),
        (Curriculum, {"lr": 3.0}),
        (Summed, {"lr": 3.0, "optimizer": "SGD"}),
        (Weighted, {"lr": 1.0, "optimizer": "RMSprop"}),
        (Annealed, {"lr": 1.0}),
    ],
)
def test_with_a_learning_rate_far_too_high_it_is_told(make, settings, tmp_path) -> None:
    """Divergence, or the explosion that leads to it, is told of the same losses."""
    told = fit(tmp_path, make, **settings)
    assert max(told.losses) > 30 * abs(told.losses[0]) or not all(map(math.isfinite, told.losses))
    assert told.alarms
    assert not told.said.startswith("rnn, layer 0 (GRU): healthy.")
