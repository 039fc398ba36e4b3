"""Runs of fused modules in which something is not finite, by where it comes from."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.campaigns.truth.case import Case, noise
from benchmarks.campaigns.truth.healthy import FUSED, batches, last_output
from benchmarks.campaigns.truth.sick import exploding, remembering_net
from lightning_gradwatch import EventKind as K


def nan_from_loss(random: Random) -> Case:
    """A loss whose slope is not finite, or that is not finite itself, at numbers that occur: √0, log 0, 0/0."""
    kind, hidden, timesteps, seed = (
        random.choice(FUSED),
        random.choice((4, 8)),
        random.randint(5, 9),
        random.randrange(999),
    )

    def root(net: Any, batch: Any, i: int) -> Tensor:
        h = net["rnn"](batch[0])[0][:, -1]
        return (h - h).square().sum(1).sqrt().mean()

    def norm(net: Any, batch: Any, i: int) -> Tensor:
        h = net["rnn"](batch[0])[0][:, -1]
        return (h - h).pow(2).sum().sqrt() + (net["head"](h) - batch[1]).square().mean()

    def logarithm(net: Any, batch: Any, i: int) -> Tensor:
        return -(net["rnn"](batch[0])[0][:, -1] * 0.0).abs().log().mean()

    def ratio(net: Any, batch: Any, i: int) -> Tensor:
        score = net["head"](net["rnn"](batch[0])[0][:, -1])
        return (score / (score - score).square().sum()).mean() * 0.0

    loss, culprits = random.choice(
        (
            (root, ("sqrt",)),
            (norm, ("sqrt",)),
            (logarithm, ("log",)),
            (ratio, ("a division",)),
        )
    )
    return Case(
        kind="NaN from the loss",
        net=remembering_net(seed, kind, hidden),
        loss=loss,
        culprits=culprits,
        batches=batches(random, 4, 5, timesteps, 3),
        cause="operation outside",
        must=(K.NONFINITE_LOSS, K.NONFINITE_HIDDEN_GRADIENT, K.NONFINITE_GRADIENT),
        never=(K.EXPLODING_HIDDEN_GRADIENT, K.EXPLODING_GRADIENT, K.VANISHING_HIDDEN_GRADIENT),
        steps=4,
        nonfinite=0,
        seed=seed,
    )


def nan_from_operation(random: Random) -> Case:
    """An operation outside whose slope is not finite, hidden from the loss: ``where``, a softmax over -inf alone, √ of a variance of 0."""
    kind, hidden, timesteps, seed = (
        random.choice(FUSED),
        random.choice((4, 8)),
        random.randint(5, 9),
        random.randrange(999),
    )
    first = random.randrange(3)

    def hidden_root(net: Any, batch: Any, i: int) -> Tensor:
        h = net["rnn"](batch[0])[0][:, -1]
        z = h * 0.0 if i >= first else h
        return torch.where(z.abs() > 0, z.abs().sqrt(), torch.zeros(()).to(z)).sum() + net["head"](h).square().mean()

    def masked_softmax(net: Any, batch: Any, i: int) -> Tensor:
        h = net["rnn"](batch[0])[0]
        score = h.mean(-1)
        if i >= first:
            score = score + torch.full_like(score, -math.inf)
        weights = score.softmax(1).nan_to_num()
        return net["head"]((weights[..., None] * h).sum(1) + h[:, -1]).square().mean()

    def spread(net: Any, batch: Any, i: int) -> Tensor:
        h = net["rnn"](batch[0])[0][:, -1]
        same = h * 0.0 if i >= first else h
        return same.var(1).sqrt().mean() + net["head"](h).square().mean()

    loss, culprits = random.choice(
        (
            (hidden_root, ("sqrt", "where")),
            (masked_softmax, ("softmax", "nan_to_num")),
            (spread, ("sqrt",)),
        )
    )
    return Case(
        kind="NaN from an operation outside",
        net=remembering_net(seed, kind, hidden),
        loss=loss,
        culprits=culprits,
        batches=batches(random, 5, 5, timesteps, 3),
        cause="operation outside",
        must=(K.NONFINITE_HIDDEN_GRADIENT, K.NONFINITE_GRADIENT, K.NONFINITE_LOSS),
        never=(K.EXPLODING_HIDDEN_GRADIENT, K.EXPLODING_GRADIENT, K.VANISHING_HIDDEN_GRADIENT),
        steps=5,
        nonfinite=first,
        seed=seed,
    )


def overflow(random: Random) -> Case:
    """A gradient that grows through time until float32 ends, from a state that stays finite."""
    hidden, timesteps, seed = 8, random.randint(50, 60), random.randrange(999)
    torch.manual_seed(seed)
    net = nn.ModuleDict({"rnn": exploding(hidden, random.uniform(6.0, 7.0), True), "head": nn.Linear(hidden, 1)})

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        return 1e3 * (net["head"](net["rnn"](batch[0])[0][:, -1]) - 1).square().mean()

    return Case(
        kind="NaN from growth through time",
        net=net,
        loss=loss,
        batches=[[0.0 * noise(random, 4, timesteps, 3)] for _ in range(4)],
        cause="explosion through time",
        must=(K.NONFINITE_HIDDEN_GRADIENT, K.EXPLODING_HIDDEN_GRADIENT),
        steps=4,
        lr=0.0,
        nonfinite=0,
        seed=seed,
    )


def bad_input(random: Random) -> Case:
    """A NaN or an infinity in one number of one batch's input."""
    kind, hidden, timesteps, seed = (
        random.choice(FUSED),
        random.choice((4, 8)),
        random.randint(5, 9),
        random.randrange(999),
    )
    made, step = batches(random, 5, 5, timesteps, 3), random.randrange(5)
    at = (random.randrange(5), random.randrange(timesteps), random.randrange(3))
    made[step][0][at] = random.choice((math.nan, math.inf, -math.inf)) if kind == "RNN_RELU" else math.nan
    return Case(
        kind="NaN or inf in the input",
        net=remembering_net(seed, kind, hidden),
        loss=last_output,
        batches=made,
        cause="bad input",
        must=(K.NONFINITE_INPUT,),
        steps=5,
        clip=random.random() < 0.5,
        nonfinite=step,
        where={"module": "net.rnn", "timestep": at[1], "sequence": at[0], "step": step},
        entry=f"batch[0][{at[0]}, {at[1]}, {at[2]}]",
        seed=seed,
    )


def bad_target(random: Random) -> Case:
    """A NaN or an infinity in one number of one batch's target."""
    kind, hidden, timesteps, seed = (
        random.choice(FUSED),
        random.choice((4, 8)),
        random.randint(5, 9),
        random.randrange(999),
    )
    made, step, at = batches(random, 5, 5, timesteps, 3), random.randrange(5), random.randrange(5)
    made[step][1][at] = random.choice((math.nan, math.inf))
    form = random.choice(("list", "dict"))

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        return last_output(net, (batch["x"], batch["y"]["number"]) if form == "dict" else batch, i)

    return Case(
        kind="NaN or inf in the target",
        net=remembering_net(seed, kind, hidden),
        loss=loss,
        batches=[{"x": x, "y": {"number": y}} for x, y in made] if form == "dict" else made,
        cause="bad target",
        must=(K.NONFINITE_LOSS,),
        steps=5,
        clip=random.random() < 0.5,
        nonfinite=step,
        where={"step": step},
        entry=f"batch['y']['number'][{at}, 0]" if form == "dict" else f"batch[1][{at}, 0]",
        seed=seed,
    )


KINDS = (nan_from_loss, nan_from_operation, overflow, bad_input, bad_target)
