"""LightningModules that train in ways of their own, and what a Trainer needs for its other ways."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.models import WORDS, TinyLanguageModel
from tests.versions import cpu_scaler, needs_fused


class Fused(TinyLanguageModel):
    """With an optimizer that undoes the loss scale in its own step."""

    def __init__(self, **options: Any) -> None:
        needs_fused()
        super().__init__(**options)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr, fused=True)


class SkipsBatches(TinyLanguageModel):
    """Returns no loss at the batches named."""

    def __init__(self, *, without_loss: tuple[int, ...], **options: Any) -> None:
        super().__init__(**options)
        self.without_loss = without_loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx in self.without_loss else loss


class Manual(TinyLanguageModel):
    """Optimizes by hand, two steps a batch; the sequence is cut in two, and the state carried over without its graph.

    Args:
        backward: ``lightning`` or ``raw``: through ``manual_backward`` or past it.
        wrapped: whether the optimizer is Lightning's wrapper, which calls hooks, or the bare one, which calls none.
    """

    def __init__(self, *, backward: str = "lightning", wrapped: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.backward_by, self.wrapped = backward, wrapped

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=self.wrapped)
        state = None
        for words in batch[0].split(5, dim=1):
            output, state = self.rnn(self.embedding(words[:, :-1]), state)
            loss = nn.functional.cross_entropy(self.head(output).flatten(0, 1), words[:, 1:].flatten())
            optimizer.zero_grad()
            if self.backward_by == "raw":
                loss.backward()
            else:
                self.manual_backward(loss)
            optimizer.step()
            state = (state[0].detach(), state[1].detach())
            self.log("train_loss", loss)


class Weaker(torch.autograd.Function):
    """The identity, whose backward sends on less each time that it runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, runs: list[None]) -> Tensor:
        ctx.runs = runs
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.runs.append(None)
        return gradient * 0.9 ** len(ctx.runs), None


class CellLoop(TinyLanguageModel):
    """A cell in a Python loop, with code in the graph whose runs can be counted, in buffers or weights.

    Args:
        head, step: what is done to the part from states to loss, and to each step: ``checkpointed``, with a BatchNorm in it;
            ``counting``, whose backward depends on how often it ran; ``hooked``, whose module counts its backward hook's calls.
        every: whether every step has a loss, or the last one alone.
    """

    def __init__(self, head: str = "", step: str = "", every: bool = False) -> None:
        super().__init__("GRU")
        self.rnn, self.norm, self.every = nn.GRUCell(6, 8), nn.BatchNorm1d(8), every
        self.around_head, self.around_step = head, step
        self.runs: list[None] = []
        self.register_buffer("hooks", torch.zeros(()))
        for module, how in ((self.head, head), (self.rnn, step)):
            if how == "hooked":
                module.register_full_backward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.hooks += 1

    def _through(self, how: str, run: Any, *inputs: Tensor) -> Tensor:
        if how == "checkpointed":
            return checkpoint(lambda *values: run(*values[:-1], self.norm(values[-1])), *inputs, use_reentrant=False)
        return run(*inputs[:-1], Weaker.apply(inputs[-1], self.runs) if how == "counting" else inputs[-1])

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        h, losses = torch.zeros(len(words), 8), []
        for x, word in zip(self.embedding(words[:, :-1]).unbind(1), words[:, 1:].unbind(1), strict=True):
            h = self._through(self.around_step, self.rnn, x, h)
            losses = [*losses, (h, word)] if self.every else [(h, word)]
        made = [nn.functional.cross_entropy(self._through(self.around_head, self.head, h), word) for h, word in losses]
        return torch.stack(made).mean()


class Memory(nn.Module):
    """A cell of one's own with two states, whose dropout draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.drop = nn.Linear(14, 16), nn.Dropout(0.2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        f, z = self.mix(torch.cat([x, self.drop(h)], -1)).chunk(2, -1)
        c = f.sigmoid() * c + z.tanh()
        return c.tanh(), c


class AnyCell(TinyLanguageModel):
    """A cell of one's own in a loop.

    Args:
        way: ``forward``, called directly; ``stacked`` states, taken apart; ``listed``, held in a plain list; ``twice``, called again with
            each state; otherwise as usual.
    """

    def __init__(self, way: str = "") -> None:
        super().__init__("GRU")
        self.way, self.rnn = way, Memory()
        self.cells = [self.rnn]
        if way == "listed":
            del self.rnn

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        h = c = torch.zeros(len(words), 8)
        cell = self.cells[0]
        run = cell.forward if self.way == "forward" else cell
        beside = torch.zeros(())
        for x in self.embedding(words[:, :-1]).unbind(1):
            if self.way == "twice":
                beside = beside + run(x, h, c)[0].square().mean()
            h, c = run(x, h, c)
            if self.way == "stacked":
                h, c = torch.stack([h, c]).unbind()
        return nn.functional.cross_entropy(self.head(h), words[:, -1]) + beside


class InTurn(TinyLanguageModel):
    """Trains one recurrent layer at even batches, another at odd ones."""

    def __init__(self) -> None:
        super().__init__("GRU")
        self.other = nn.GRU(6, 8, batch_first=True)

    def loss(self, words: Tensor, batch_idx: int) -> Tensor:
        output, _ = (self.other if batch_idx % 2 else self.rnn)(self.embedding(words[:, :-1]))
        return nn.functional.cross_entropy(self.head(output).flatten(0, 1), words[:, 1:].flatten())


class Adversarial(pl.LightningModule):
    """A generator (LSTM) and a discriminator (GRU), each with its optimizer; the discriminator steps twice a batch.

    Args:
        in_turn: train the generator at even batches and the discriminator at odd ones.
    """

    def __init__(self, in_turn: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.in_turn = in_turn
        self.generator, self.readout = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, WORDS)
        self.discriminator, self.verdict = nn.GRU(WORDS, 5, batch_first=True), nn.Linear(5, 1)

    def _judge(self, sentences: Tensor, truth: float) -> Tensor:
        verdict = self.verdict(self.discriminator(sentences)[1][-1])
        return nn.functional.binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, truth))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        words = batch[0]
        for_generator, for_discriminator = self.optimizers()
        fake = self.readout(self.generator(torch.randn(*words.shape, 4))[0]).softmax(-1)
        if not (self.in_turn and batch_idx % 2):
            self._step(for_generator, self._judge(fake, 1.0))
        if not (self.in_turn and batch_idx % 2 == 0):
            real = nn.functional.one_hot(words, WORDS).float()
            for _ in range(2):
                self._step(for_discriminator, self._judge(real, 1.0) + self._judge(fake.detach(), 0.0))

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        generator = [*self.generator.parameters(), *self.readout.parameters()]
        discriminator = [*self.discriminator.parameters(), *self.verdict.parameters()]
        return [torch.optim.Adam(generator, 0.01), torch.optim.SGD(discriminator, 0.1, momentum=0.9)]


class Fails(Callback):
    """Raises in one hook at one step."""

    def __init__(self, hook: str, step: int = 3, error: type[BaseException] = RuntimeError) -> None:
        def fail(trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_step == step:
                raise error("the user's own")

        setattr(self, hook, fail)


def scaled(initial: float = 1024.0, growth_interval: int = 3) -> MixedPrecision:
    """fp16 on the CPU with a gradient scaler whose scale changes within a few steps."""
    scaler = cpu_scaler(init_scale=initial, growth_interval=growth_interval)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)
