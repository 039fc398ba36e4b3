"""Runs with nothing wrong with them: what has to be remembered lies within reach, and rates are ordinary."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.campaigns.truth.case import Case, noise

FUSED = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")


def fused(
    kind: str, width: int, hidden: int, layers: int = 1, bidirectional: bool = False, batch_first: bool = True
) -> nn.RNNBase:
    """One of PyTorch's own, as it comes."""
    name, _, nonlinearity = kind.partition("_")
    options = {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
    return getattr(nn, name)(width, hidden, layers, batch_first=batch_first, bidirectional=bidirectional, **options)


def remembering(module: nn.Module) -> nn.Module:
    """The same, begun so that it remembers: recurrent weights near the identity, or gates that are open."""
    relu = getattr(module, "nonlinearity", "") == "relu"
    with torch.no_grad():
        for name, weight in module.named_parameters():
            size = weight.shape[-1]
            if "weight_hh" in name and len(weight) == size:
                weight.copy_(0.98 * (torch.eye(size) if relu else torch.linalg.qr(weight)[0]))
            elif "bias_ih" in name and relu:
                weight.fill_(0.3)  # so that every unit is at work
            elif "weight_ih" in name and len(weight) == module.hidden_size:
                weight.mul_(0.1 if relu else 0.3)  # a plain recurrence whose units stay off their limits
            elif "bias_ih" in name and len(weight) > module.hidden_size:
                weight[module.hidden_size : 2 * module.hidden_size] += 4.0  # f of an LSTM, z of a GRU
    return module


def batches(random: Random, steps: int, size: int, timesteps: int, width: int) -> list[list[Tensor]]:
    """Inputs ``(batch, time, width)`` and a number to predict, which the first inputs decide."""
    made = []
    for _ in range(steps):
        x = noise(random, size, timesteps, width)
        made.append([x, x[:, :2].mean((1, 2))[:, None]])
    return made


def _settings(random: Random) -> dict[str, Any]:
    """Rates with which no run of a few steps goes astray."""
    return {
        "steps": random.choice((8, 10, 12)),
        "lr": random.choice((1e-4, 1e-3)),
        "optimizer": random.choice(("SGD", "Adam")),
        "clip": random.random() < 0.3,
        "precision": random.choice(("32-true", "32-true", "64-true")),
        "seed": random.randrange(2**20),
    }


def last_output(net: Any, batch: Any, i: int) -> Tensor:
    """The error of a head that reads the last timestep."""
    x, y = batch
    return (net["head"](net["rnn"](x)[0][:, -1]) - y).square().mean()


def many_to_one(random: Random) -> Case:
    """One or more layers, the last timestep read."""
    own = _settings(random)
    kind, hidden, timesteps = random.choice(FUSED), random.choice((4, 8)), random.randint(5, 9)
    torch.manual_seed(own["seed"])
    net = nn.ModuleDict(
        {"rnn": remembering(fused(kind, 3, hidden, random.choice((1, 1, 2)))), "head": nn.Linear(hidden, 1)}
    )
    return Case(
        kind="healthy: many-to-one",
        net=net,
        loss=last_output,
        batches=batches(random, own["steps"], random.choice((1, 6, 12)), timesteps, 3),
        **own,
    )


def both_directions(random: Random) -> Case:
    """Bidirectional, read at its final states, or averaged over time."""
    own = _settings(random)
    kind, hidden, timesteps = random.choice(FUSED), random.choice((4, 6)), random.randint(5, 8)
    torch.manual_seed(own["seed"])
    net = nn.ModuleDict({"rnn": remembering(fused(kind, 3, hidden, 1, True)), "head": nn.Linear(2 * hidden, 1)})

    def final(net: Any, batch: Any, i: int) -> Tensor:
        state = net["rnn"](batch[0])[1]
        h = state[0] if isinstance(state, tuple) else state
        return (net["head"](torch.cat([h[0], h[1]], 1)) - batch[1]).square().mean()

    def pooled(net: Any, batch: Any, i: int) -> Tensor:
        return (net["head"](net["rnn"](batch[0])[0].mean(1)) - batch[1]).square().mean()

    return Case(
        kind="healthy: bidirectional",
        net=net,
        loss=random.choice((final, pooled)),
        batches=batches(random, own["steps"], 5, timesteps, 3),
        **own,
    )


def packed(random: Random) -> Case:
    """Sequences of different lengths, packed, each read at its end."""
    own = _settings(random)
    kind, hidden, timesteps = random.choice(FUSED), random.choice((4, 8)), random.randint(6, 9)
    ways = random.choice((1, 1, 2))
    torch.manual_seed(own["seed"])
    net = nn.ModuleDict({"rnn": remembering(fused(kind, 3, hidden, 1, ways == 2)), "head": nn.Linear(ways * hidden, 1)})
    lengths = torch.tensor([timesteps, *(random.randint(4, timesteps) for _ in range(4))])

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        state = net["rnn"](pack_padded_sequence(batch[0], lengths, batch_first=True, enforce_sorted=False))[1]
        h = state[0] if isinstance(state, tuple) else state
        return (net["head"](torch.cat([*h[-ways:]], 1)) - batch[1]).square().mean()

    return Case(
        kind="healthy: packed", net=net, loss=loss, batches=batches(random, own["steps"], 5, timesteps, 3), **own
    )


def language_model(random: Random) -> Case:
    """A loss at every timestep."""
    own = _settings(random)
    kind, hidden, timesteps = random.choice(FUSED), random.choice((6, 8)), random.randint(6, 10)
    torch.manual_seed(own["seed"])
    net = nn.ModuleDict(
        {
            "words": nn.Embedding(9, 4),
            "rnn": fused(kind, 4, hidden, random.choice((1, 2))),
            "head": nn.Linear(hidden, 9),
        }
    )
    symbols = [
        torch.randint(9, (5, timesteps + 1), generator=torch.Generator().manual_seed(random.randrange(2**30)))
        for _ in range(own["steps"])
    ]

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        scores = net["head"](net["rnn"](net["words"](batch[:, :-1]))[0])
        return functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())

    return Case(kind="healthy: language model", net=net, loss=loss, batches=symbols, **own)


def seq2seq(random: Random) -> Case:
    """An encoder whose final state a decoder begins with."""
    own = _settings(random)
    kind, hidden, timesteps = random.choice(FUSED), random.choice((4, 8)), random.randint(4, 6)
    torch.manual_seed(own["seed"])
    parts = {"encoder": remembering(fused(kind, 3, hidden)), "decoder": remembering(fused(kind, 3, hidden))}
    net = nn.ModuleDict({**parts, "head": nn.Linear(hidden, 1)})

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        _, state = net["encoder"](batch[0])
        out, _ = net["decoder"](batch[0].flip(1), state)
        return (net["head"](out)[..., 0] - batch[0][..., 0]).square().mean()

    return Case(
        kind="healthy: seq2seq", net=net, loss=loss, batches=batches(random, own["steps"], 5, timesteps, 3), **own
    )


CELLS = {"RNN": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}


def loop_over(cell: Any, x: Tensor, hidden: int) -> list[Tensor]:
    """The h of every timestep of a loop over one of PyTorch's cells."""
    h = c = x.new_zeros(len(x), hidden)
    found = []
    for step in x.unbind(1):
        if isinstance(getattr(cell, "cell", cell), nn.LSTMCell):
            h, c = cell(step, (h, c))
        else:
            h = cell(step, h)
        found.append(h)
    return found


def cells(random: Random) -> Case:
    """A loop over one of PyTorch's own cells, read at its end or everywhere."""
    own = _settings(random)
    kind, hidden, timesteps = random.choice(list(CELLS)), random.choice((4, 8)), random.randint(4, 7)
    torch.manual_seed(own["seed"])
    net = nn.ModuleDict({"cell": remembering(CELLS[kind](3, hidden)), "head": nn.Linear(hidden, 1)})
    everywhere = random.random() < 0.4

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = loop_over(net["cell"], batch[0], hidden)
        read = torch.stack(h).mean(0) if everywhere else h[-1]
        return (net["head"](read) - batch[1]).square().mean()

    return Case(
        kind="healthy: cells", net=net, loss=loss, batches=batches(random, own["steps"], 5, timesteps, 3), **own
    )


class Leaky(nn.Module):
    """A cell as somebody would write it."""

    def __init__(self, width: int, hidden: int, keep: float = 0.9) -> None:
        super().__init__()
        self.fed, self.back, self.keep = nn.Linear(width, hidden), nn.Linear(hidden, hidden), keep

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One timestep."""
        return self.keep * h + (1 - self.keep) * torch.tanh(self.fed(x) + self.back(h))


def own_cell(random: Random) -> Case:
    """A cell of one's own, which keeps nine tenths of its state."""
    own = _settings(random)
    hidden, timesteps = random.choice((4, 8)), random.randint(4, 8)
    torch.manual_seed(own["seed"])
    net = nn.ModuleDict({"cell": Leaky(3, hidden), "head": nn.Linear(hidden, 1)})

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = batch[0].new_zeros(len(batch[0]), hidden)
        for x in batch[0].unbind(1):
            h = net["cell"](x, h)
        return (net["head"](h) - batch[1]).square().mean()

    made = batches(random, own["steps"], 5, timesteps, 3)
    return Case(kind="healthy: own cell", net=net, loss=loss, batches=made, states={"cell": lambda h: [h]}, **own)


def stepped(random: Random) -> Case:
    """A fused module fed one step at a time, its state passed on, scaled by 1, cloned, or masked at an episode's end."""
    own = _settings(random)
    kind, hidden, timesteps = random.choice(("RNN_TANH", "GRU", "LSTM")), random.choice((4, 8)), random.randint(5, 8)
    torch.manual_seed(own["seed"])
    net = nn.ModuleDict({"rnn": remembering(fused(kind, 3, hidden, batch_first=False)), "head": nn.Linear(hidden, 1)})
    ends, row = random.randrange(1, 3), random.randrange(5)  # of an episode
    mask = torch.ones(timesteps, 1, 5, 1)
    mask[ends, 0, row] = 0.0
    between = random.choice(
        (
            lambda h, t: h,
            lambda h, t: h * 1.0,
            lambda h, t: h.clone(),
            lambda h, t: h + 0.0,
            lambda h, t: h * mask[t].to(h),
        )
    )

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        zeros = batch[0].new_zeros(1, len(batch[0]), hidden)
        state: Any = (zeros, zeros) if kind == "LSTM" else zeros
        for t, x in enumerate(batch[0].unbind(1)):
            state = tuple(between(s, t) for s in state) if kind == "LSTM" else between(state, t)
            out, state = net["rnn"](x[None], state)
        return (net["head"](out[0]) - batch[1]).square().mean()

    made = batches(random, own["steps"], 5, timesteps, 3)
    return Case(kind="healthy: stepped by hand", net=net, loss=loss, batches=made, joined=("rnn",), **own)


KINDS = (many_to_one, both_directions, packed, language_model, seq2seq, cells, own_cell, stepped)
