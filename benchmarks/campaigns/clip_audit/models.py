"""A small network that clips, or fails to, in a way of its own, and writes down what truly happened.

Each step's truth is taken where the clipping is done: the norm that the clipping function itself
returns, against the bound that it was given. GradWatch sees none of it.
"""

# Over 300 lines: one table of the ways in which a training clips.
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_ as clip
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

SIZE, BATCH, STEPS = 4, 8, 8
"""Width of an input, sequences of a batch, timesteps."""


class Ledger:
    """Of one run: what was truly clipped.

    Attributes:
        norms: before each clipping, as the clipping function returned it.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.norms: list[float] = []

    def clip(self, parameters: Iterable[Tensor], by: float = 1.0) -> None:
        """Clip to the bound times ``by``, and write down the norm, without that factor."""
        self.norms.append(float(clip(list(parameters), self.bound * by)) / by)

    @property
    def share(self) -> float:
        """Of the clippings, those that acted."""
        return sum(norm > self.bound for norm in self.norms) / max(len(self.norms), 1)


class Network(pl.LightningModule):
    """A recurrent network that reads a number off a sequence.

    Args:
        cell: ``RNN``, ``LSTM`` or ``GRU``.
        optimizer: of ``torch.optim``.
        ledger: what clips, and remembers.
    """

    def __init__(self, cell: str, optimizer: str, ledger: Ledger) -> None:
        super().__init__()
        self.rnn = getattr(nn, cell)(SIZE, 8, batch_first=True)
        self.head = nn.Linear(8, 1)
        self.ledger, self.kind = ledger, optimizer

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.head(self.rnn(x)[0][:, -1]), y)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self.loss(batch)

    def made(self, parameters: Iterable[Tensor]) -> Optimizer:
        options = {"LBFGS": {"max_iter": 3}, "momentum": {"momentum": 0.9, "nesterov": True}}.get(self.kind, {})
        kind = "SGD" if self.kind == "momentum" else self.kind
        rate = {"SGD": 0.05, "momentum": 0.01, "LBFGS": 0.1}.get(self.kind, 3e-3)
        return getattr(torch.optim, kind)(parameters, lr=rate, **options)

    def configure_optimizers(self) -> Any:
        return self.made(self.parameters())


class ByHand(Network):
    """In manual optimization, one optimizer.

    Args:
        every: batches from one step to the next.
    """

    def __init__(self, *args: Any, every: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization, self.every = False, every

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = self.loss(batch)
        if batch_idx % self.every == 0:
            optimizer.zero_grad()
        self.manual_backward(loss / self.every)
        if (batch_idx + 1) % self.every == 0:
            self.after(optimizer)
            optimizer.step()

    def after(self, optimizer: Any) -> None: ...


class ClipsByHand(ByHand):
    def after(self, optimizer: Any) -> None:
        self.ledger.clip(self.parameters())


class LightningByHand(ByHand):
    def after(self, optimizer: Any) -> None:
        self.ledger.norms.append(norm_of(self.parameters()))
        self.clip_gradients(optimizer, self.ledger.bound, "norm")


class ClipsScaled(ByHand):
    """Before the gradient scaler has taken its factor out."""

    def after(self, optimizer: Any) -> None:
        self.ledger.clip(self.parameters())


class ClipsTooSoon(Network):
    """In manual optimization, before the backward pass: there is no gradient yet."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        clip(self.parameters(), self.ledger.bound)
        self.manual_backward(loss)
        optimizer.step()


class ClipsInStep(Network):
    """In automatic optimization, where the backward pass comes after the training step."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if batch_idx >= 0:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.ledger.bound)
        return loss


class SwitchedOff(Network):
    """The code clips if it is asked to, and is not."""

    wanted = False

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.wanted:
            clip(self.parameters(), self.ledger.bound)


class InHook(Network):
    """In the module's own hook, once the gradient is there and unscaled."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.ledger.clip(self.parameters())


class AfterBackward(Network):
    def on_after_backward(self) -> None:
        self.ledger.clip(self.parameters())


class Configures(Network):
    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        self.ledger.clip(self.parameters())


class ConfiguresByLightning(Network):
    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        self.ledger.norms.append(norm_of(self.parameters()))
        self.clip_gradients(optimizer, gradient_clip_val=self.ledger.bound, gradient_clip_algorithm="norm")


class ConfiguresNothing(Network):
    """Takes the place of Lightning's clipping, and does not clip."""

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None: ...


class Multiplies(Network):
    """By a fixed factor, which is no clipping."""

    def on_after_backward(self) -> None:
        for weight in self.parameters():
            if weight.grad is not None:
                weight.grad.mul_(0.25)


class AddsNoise(Network):
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        for weight in self.parameters():
            if weight.grad is not None:
                weight.grad.add_(0.3 * weight.grad.std(correction=0) * torch.randn_like(weight))


class Freezes(Network):
    """Takes the head's gradient away."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        for weight in self.head.parameters():
            weight.grad = None


class Hooked(Network):
    """Gradient hooks rescale within the backward pass."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for weight in self.parameters():
            weight.register_hook(lambda gradient: gradient * 0.1)


class Replaces(Network):
    """Puts clipped gradients in the place of the old ones, entry by entry and through ``.data``."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        norm = norm_of(self.parameters())
        self.ledger.norms.append(norm)
        if norm > self.ledger.bound:
            for weight in self.parameters():
                if weight.grad is not None:
                    weight.grad.data = weight.grad.data * (self.ledger.bound / norm)


class Two(Network):
    """Two optimizers, a step each in a batch; the second one's loss flows through both networks.

    Args:
        clipped: what is clipped before the step of the first one: ``own``, the ``other``'s, or
            ``both`` for each at its turn; ``""`` for nothing.
    """

    def __init__(self, cell: str, optimizer: str, ledger: Ledger, clipped: str) -> None:
        super().__init__(cell, optimizer, ledger)
        self.second = getattr(nn, cell)(1, 4, batch_first=True)
        self.last = nn.Linear(4, 1)
        self.clipped, self.automatic_optimization = clipped, False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()
        x, y = batch
        made = self.head(self.rnn(x)[0])
        loss = nn.functional.mse_loss(self.last(self.second(made)[0][:, -1]), y)
        first.zero_grad()
        self.manual_backward(loss)
        if self.clipped:
            self.ledger.clip(self.theirs() if self.clipped == "other" else self.own())
        first.step()
        second.zero_grad()
        made = self.head(self.rnn(x)[0]).detach()
        self.manual_backward(nn.functional.mse_loss(self.last(self.second(made)[0][:, -1]), y))
        if self.clipped == "both":
            clip(self.theirs(), self.ledger.bound)
        second.step()

    def own(self) -> list[Tensor]:
        return [*self.rnn.parameters(), *self.head.parameters()]

    def theirs(self) -> list[Tensor]:
        return [*self.second.parameters(), *self.last.parameters()]

    def configure_optimizers(self) -> Any:
        return [self.made(self.own()), self.made(self.theirs())]


class OneBackward(Two):
    """One loss for both optimizers; the second one steps first, and only the first one's gradients
    are clipped, before either step.
    """

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()
        x, y = batch
        loss = nn.functional.mse_loss(self.last(self.second(self.head(self.rnn(x)[0]))[0][:, -1]), y)
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        self.ledger.clip(self.own())
        second.step()
        first.step()


class ClipsWhen(pl.Callback):
    """Clips in a hook of a callback's.

    Args:
        hook: ``on_after_backward`` or ``on_before_optimizer_step``.
    """

    def __init__(self, hook: str, ledger: Ledger) -> None:
        self.ledger = ledger
        setattr(self, hook, lambda trainer, module, *_: ledger.clip(module.parameters()))


class Notes(pl.Callback):
    """Writes down the norm that Lightning's own clipping will meet."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.ledger.norms.append(norm_of(pl_module.parameters()))


def norm_of(parameters: Iterable[Tensor]) -> float:
    """Of the gradients, all together."""
    gradients = [weight.grad.flatten() for weight in parameters if weight.grad is not None]
    return float(torch.cat(gradients).norm())


def batches(seed: int, spiky: bool, steps: int) -> DataLoader[Any]:
    """Sequences to read a number off; with ``spiky``, one batch in eleven has a much larger target."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps * BATCH, STEPS, SIZE, generator=generator)
    y = x.mean((1, 2), keepdim=False)[:, None] + 0.3 * torch.randn(steps * BATCH, 1, generator=generator)
    if spiky:
        y.view(steps, BATCH, 1)[5::11] *= 40.0
    return DataLoader(TensorDataset(x, y), batch_size=BATCH)
