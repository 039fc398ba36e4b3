"""Runs in which the gradient does not get where it should: the loss reads the wrong place, the state is cut, the cell forgets."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.campaigns.truth.case import Case
from benchmarks.campaigns.truth.healthy import FUSED, batches, fused, last_output, remembering
from benchmarks.campaigns.truth.sick import GATED, remembering_net
from lightning_gradwatch import EventKind as K


def read_at_an_end(random: Random) -> Case:
    """A bidirectional output read at one end, where the other direction has seen one timestep."""
    kind, hidden, timesteps, seed = (
        random.choice(FUSED),
        random.choice((4, 6)),
        random.randint(8, 16),
        random.randrange(999),
    )
    end = random.choice((0, -1))

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        return (net["head"](net["rnn"](batch[0])[0][:, end]) - batch[1]).square().mean()

    return Case(
        kind="short reach: read at an end",
        net=remembering_net(seed, kind, hidden, 1, True),
        loss=loss,
        batches=batches(random, 8, 5, timesteps, 3),
        cause="short reach",
        must=(K.FEW_TIMESTEPS_REACHED,),
        seed=seed,
    )


def early_labels(random: Random) -> Case:
    """Labels at the first timesteps of long sequences, or an output read at ``[:, 0]``."""
    kind, hidden, timesteps, seed = (
        random.choice(FUSED),
        random.choice((4, 8)),
        random.randint(16, 30),
        random.randrange(999),
    )
    labelled = random.randint(1, timesteps // 6)

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        return (net["head"](net["rnn"](batch[0])[0][:, :labelled]) - batch[1][:, None]).square().mean()

    return Case(
        kind="short reach: early labels",
        net=remembering_net(seed, kind, hidden, random.choice((1, 2))),
        loss=loss,
        batches=batches(random, 8, 5, timesteps, 3),
        cause="short reach",
        must=(K.FEW_TIMESTEPS_REACHED,),
        seed=seed,
    )


def few_sequences(random: Random) -> Case:
    """The hardest pair alone is learned from, or those that a mask leaves."""
    kind, hidden, timesteps, seed = (
        random.choice(FUSED),
        random.choice((4, 8)),
        random.randint(6, 9),
        random.randrange(999),
    )
    chosen = random.randrange(1, 16)

    def hardest(net: Any, batch: Any, i: int) -> Tensor:
        h = net["rnn"](batch[0])[0][:, -1]
        return (h[:8] - h[8:]).square().sum(1).max()

    def one(net: Any, batch: Any, i: int) -> Tensor:
        return (net["head"](net["rnn"](batch[0])[0][chosen, -1]) - batch[1][chosen]).square().mean()

    return Case(
        kind="few sequences have gradient",
        net=remembering_net(seed, kind, hidden),
        loss=random.choice((hardest, one)),
        batches=batches(random, 8, 16, timesteps, 3),
        cause="few sequences",
        seed=seed,
    )


def batch_first_forgotten(random: Random) -> Case:
    """A module that takes time first is fed batch first: one of its "sequences" is learned from."""
    kind, hidden, seed = random.choice(FUSED), random.choice((4, 8)), random.randrange(999)
    torch.manual_seed(seed)
    net = nn.ModuleDict({"rnn": remembering(fused(kind, 3, hidden, batch_first=False)), "head": nn.Linear(hidden, 1)})
    return Case(
        kind="few sequences have gradient",
        net=net,
        loss=last_output,
        batches=batches(random, 8, random.randint(5, 8), random.randint(10, 20), 3),
        cause="few sequences",
        seed=seed,
    )


def severed_steps(random: Random) -> Case:
    """A fused module fed one step at a time, whose state is detached, thrown away, or begun anew with a trained one, at each step."""
    kind, hidden, timesteps, seed = (
        random.choice(("RNN_TANH", *GATED)),
        random.choice((4, 8)),
        random.randint(5, 9),
        random.randrange(999),
    )
    torch.manual_seed(seed)
    parts: dict[str, nn.Module] = {"rnn": fused(kind, 3, hidden, batch_first=False), "head": nn.Linear(hidden, 1)}
    way = random.choice(("detached", "no state", "zeros", "trained"))
    net = nn.ModuleDict(parts)
    if way == "trained":
        net["start"] = nn.ParameterList([torch.zeros(1, 1, hidden)])

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        zeros = batch[0].new_zeros(1, len(batch[0]), hidden)
        h, c, total = zeros, zeros, batch[0].new_zeros(())
        for x in batch[0].unbind(1):
            if way == "detached":
                h, c = h.detach(), c.detach()
            elif way == "zeros":
                h = c = zeros
            elif way == "trained":
                h, c = net["start"][0].expand_as(zeros).contiguous(), zeros
            hx = None if way == "no state" else (h, c) if kind == "LSTM" else h
            out, state = net["rnn"](x[None], hx)
            h, c = state if kind == "LSTM" else (state, c)
            total = total + (net["head"](out[0]) - batch[1]).square().mean()
        return total

    return Case(
        kind="state severed: stepped by hand",
        net=net,
        loss=loss,
        batches=batches(random, 8, 5, timesteps, 3),
        cause="severed",
        must=(K.NO_GRADIENT_THROUGH_TIME,),
        joined=("rnn",),
        seed=seed,
    )


def vanishing(random: Random) -> Case:
    """A recurrence that forgets: a small recurrent matrix, or gates that are shut, and the label at the end."""
    kind, hidden, timesteps, seed = (
        random.choice(("RNN_TANH", *GATED)),
        random.choice((4, 8)),
        random.randint(20, 40),
        random.randrange(999),
    )
    torch.manual_seed(seed)
    module = fused(kind, 3, hidden, random.choice((1, 1, 2)))
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "weight_hh" in name:
                weight.mul_(0.4)
            elif "bias_ih" in name and kind != "RNN_TANH":
                weight[hidden : 2 * hidden] -= 1.0
    return Case(
        kind="vanishing",
        net=nn.ModuleDict({"rnn": module, "head": nn.Linear(hidden, 1)}),
        loss=last_output,
        batches=batches(random, 12, random.choice((1, 5, 12)), timesteps, 3),
        precision=random.choice(("32-true", "64-true")),
        cause="vanishing",
        must=(K.VANISHING_HIDDEN_GRADIENT,),
        steps=12,
        clip=random.random() < 0.3,
        seed=seed,
    )


def padding(random: Random) -> Case:
    """Short sequences padded at their ends. Wrong: the last state is read, past the padding. Right: it is read at the last real one."""
    kind, hidden, timesteps, seed = (
        random.choice(("RNN_TANH", *GATED)),
        random.choice((6, 8)),
        random.randint(24, 36),
        random.randrange(999),
    )
    torch.manual_seed(seed)
    right = random.random() < 0.5
    net = nn.ModuleDict(
        {"words": nn.Embedding(20, 5, padding_idx=0), "rnn": fused(kind, 5, hidden), "head": nn.Linear(hidden, 2)}
    )
    if right:
        remembering(net["rnn"])
    made = []
    for _ in range(12):
        lengths = torch.tensor([random.randint(4, 7) for _ in range(6)])
        words = torch.randint(1, 20, (6, timesteps), generator=torch.Generator().manual_seed(random.randrange(2**30)))
        words[torch.arange(timesteps) >= lengths[:, None]] = 0
        made.append([words, (words[:, 1] > 10).long(), lengths])
    packs = right and random.random() < 0.5

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        words, label, lengths = batch
        x = net["words"](words)
        if packs:
            state = net["rnn"](pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1]
            h = (state[0] if isinstance(state, tuple) else state)[-1]
        else:
            out = net["rnn"](x)[0]
            h = out[torch.arange(len(out)), lengths - 1] if right else out[:, -1]
        return functional.cross_entropy(net["head"](h), label)

    return Case(
        kind="padding, read at the last real step" if right else "padding, read past it",
        net=net,
        loss=loss,
        batches=made,
        cause="padding, rightly read" if right else "padding",
        must=() if right else (K.VANISHING_HIDDEN_GRADIENT,),
        never=(K.VANISHING_HIDDEN_GRADIENT,) if right else (),
        steps=12,
        seed=seed,
    )


KINDS = (read_at_an_end, early_labels, few_sequences, batch_first_forgotten, severed_steps, vanishing, padding)
