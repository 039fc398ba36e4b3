"""A recurrent language model as people write it: embedding, fused recurrent module, softmax."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.text import Perplexity

from lightning_gradwatch.trainer.compat import LightningModule

Cell = Literal["rnn", "gru", "lstm"]
State = Tensor | tuple[Tensor, Tensor]

CELLS: tuple[Cell, ...] = ("rnn", "gru", "lstm")


class RecurrentLanguageModel(LightningModule):
    """Predicts the next word (or character) at every timestep.

    Args:
        vocabulary: how many words there are.
        cell: which recurrent module.
        nonlinearity: of a vanilla RNN.
        embedding, hidden: sizes; ``embedding=None`` is ``hidden``.
        layers: of the recurrent module.
        dropout: in front of it, between its layers and behind it.
        tied: the softmax shares the embedding's weight (Press and Wolf 2017); both sizes must then
            agree.
        optimizer, lr: how it is trained.
        spectral_radius: start W_hh as so many times an orthogonal matrix (each gate's by itself);
            None leaves PyTorch's start.
        gate_bias: added at the start to the bias of an LSTM's forget gate or a GRU's update gate,
            so that it remembers at first (Jozefowicz et al. 2015); without effect on a vanilla RNN.

    Raises:
        ValueError: ``tied`` with different sizes.
    """

    def __init__(
        self,
        vocabulary: int,
        cell: Cell = "lstm",
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        embedding: int | None = None,
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.0,
        tied: bool = False,
        optimizer: Literal["adam", "sgd"] = "adam",
        lr: float = 3e-3,
        spectral_radius: float | None = None,
        gate_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        embedding = hidden if embedding is None else embedding
        if tied and embedding != hidden:
            raise ValueError(
                f"`embedding` must equal `hidden` ({hidden}) where weights are tied; found {embedding}. "
                "Leave `embedding` out, or use tied=False."
            )
        self.optimizer, self.lr = optimizer, lr
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.recurrent = _recurrent(cell, nonlinearity, embedding, hidden, layers, dropout)
        self.output = nn.Linear(hidden, vocabulary)
        if tied:
            # The embedding's own start, N(0, 1), would make logits of size sqrt(hidden).
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(hidden))
            self.output.weight = self.embedding.weight
        self.dropout = nn.Dropout(dropout)
        self.perplexity = Perplexity()
        if spectral_radius is not None:
            _set_spectral_radius(self.recurrent, spectral_radius)
        if gate_bias:
            _add_gate_bias(self.recurrent, gate_bias)

    def forward(self, words: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Words ``(batch, time)`` → logits ``(batch, time, word)`` and the state behind them."""
        output, last = self.recurrent(self.dropout(self.embedding(words)), state)
        return self.output(self.dropout(output)), last

    def logits(self, words: Tensor) -> Tensor:
        """Words ``(batch, time)`` → logits ``(batch, time, word)``."""
        return self(words)[0]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean loss of a word, in nats."""
        loss = self._loss(self.logits(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Perplexity over all held-out words."""
        logits = self.logits(batch[0])
        self.perplexity.update(logits, batch[1])
        self.log("val_loss", self._loss(logits, batch[1]))
        self.log("val_perplexity", self.perplexity, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam or plain SGD."""
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        return kind(self.parameters(), lr=self.lr)

    @torch.no_grad()
    def generate(self, words: Tensor, count: int, generator: torch.Generator, temperature: float = 0.7) -> Tensor:
        """``count`` words ``(word,)`` that the model itself draws after ``words`` ``(time,)``."""
        drawn: list[Tensor] = []
        fed, state = words[None], None
        for _ in range(count):
            logits, state = self(fed, state)
            shares = torch.softmax(logits[0, -1].cpu() / temperature, dim=-1)
            drawn.append(torch.multinomial(shares, 1, generator=generator))
            fed = drawn[-1][None].to(words.device)
        return torch.cat(drawn) if drawn else words[:0]

    @staticmethod
    def _loss(logits: Tensor, asked: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), asked.flatten())


def _recurrent(
    cell: Cell, nonlinearity: str, embedding: int, hidden: int, layers: int, dropout: float
) -> nn.RNN | nn.GRU | nn.LSTM:
    # PyTorch warns of a dropout that has no layers to stand between.
    options: dict[str, Any] = {"batch_first": True, "dropout": dropout if layers > 1 else 0.0}
    if cell == "rnn":
        return nn.RNN(embedding, hidden, layers, nonlinearity=nonlinearity, **options)
    return (nn.GRU if cell == "gru" else nn.LSTM)(embedding, hidden, layers, **options)


@torch.no_grad()
def _set_spectral_radius(module: nn.RNNBase, radius: float) -> None:
    for layer in range(module.num_layers):
        weight: Tensor = getattr(module, f"weight_hh_l{layer}")
        for gate in weight.split(module.hidden_size):
            gate.copy_(radius * nn.init.orthogonal_(torch.empty_like(gate)))


@torch.no_grad()
def _add_gate_bias(module: nn.RNNBase, bias: float) -> None:
    if isinstance(module, nn.RNN):
        return
    # Second in both: an LSTM's gates stand as i, f, g, o, a GRU's as r, z, n.
    remembers = slice(module.hidden_size, 2 * module.hidden_size)
    for layer in range(module.num_layers):
        getattr(module, f"bias_ih_l{layer}")[remembers] += bias
