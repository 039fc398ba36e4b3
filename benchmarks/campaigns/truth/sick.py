"""Runs of fused modules that have something wrong with them, by what it is."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.campaigns.truth.case import Case, noise
from benchmarks.campaigns.truth.healthy import FUSED, batches, fused, last_output, remembering
from lightning_gradwatch import EventKind as K

GATED = ("LSTM", "GRU")


def remembering_net(seed: int, kind: str, hidden: int, layers: int = 1, bidirectional: bool = False) -> nn.ModuleDict:
    torch.manual_seed(seed)
    module = remembering(fused(kind, 3, hidden, layers, bidirectional))
    return nn.ModuleDict({"rnn": module, "head": nn.Linear(hidden * (1 + bidirectional), 1)})


def masked_growth(random: Random) -> Case:
    """An explosion through time in a module fed one step at a time, its state masked or cloned in between."""
    hidden, timesteps, seed = random.choice((6, 8)), random.randint(18, 26), random.randrange(999)
    torch.manual_seed(seed)
    net = nn.ModuleDict({"rnn": exploding(hidden, random.uniform(1.6, 1.9)), "head": nn.Linear(hidden, 1)})
    between = random.choice((lambda h: h * 1.0, lambda h: h.clone(), lambda h: torch.where(h > 9e9, 0.0, h)))

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        h = batch[0].new_zeros(1, len(batch[0]), hidden)
        for x in batch[0].unbind(1):
            out, h = net["rnn"](x[None], between(h))
        return (net["head"](out[0]) - 1).square().mean()

    made = [[1e-9 * noise(random, 5, timesteps, 3)] for _ in range(8)]
    return Case(
        kind="explosion: stepped by hand",
        net=net,
        loss=loss,
        batches=made,
        cause="explosion through time",
        must=(K.EXPLODING_HIDDEN_GRADIENT,),
        joined=("rnn",),
        lr=1e-9,
        seed=seed,
    )


def exploding(hidden: int, radius: float, batch_first: bool = False) -> nn.RNN:
    module = nn.RNN(3, hidden, batch_first=batch_first)
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.linalg.qr(module.weight_hh_l0)[0] * radius)
        for bias in (module.bias_ih_l0, module.bias_hh_l0):
            bias.zero_()
    return module


def growth(random: Random) -> Case:
    """A recurrent matrix that enlarges the gradient at every step."""
    hidden, timesteps, seed = random.choice((6, 8)), random.randint(18, 30), random.randrange(999)
    torch.manual_seed(seed)
    net = nn.ModuleDict({"rnn": exploding(hidden, random.uniform(1.6, 1.9), True), "head": nn.Linear(hidden, 1)})

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        return (net["head"](net["rnn"](batch[0])[0][:, -1]) - 1).square().mean()

    return Case(
        kind="explosion of the recurrence",
        net=net,
        loss=loss,
        batches=[[1e-9 * noise(random, 5, timesteps, 3)] for _ in range(8)],
        cause="explosion through time",
        must=(K.EXPLODING_HIDDEN_GRADIENT,),
        lr=1e-9,
        seed=seed,
    )


def saturation(random: Random) -> Case:
    """Inputs so large that every gate stands at its limit."""
    kind, hidden, timesteps, seed = (
        random.choice(("LSTM", "GRU", "RNN_TANH")),
        random.choice((4, 8)),
        random.randint(10, 20),
        random.randrange(999),
    )
    torch.manual_seed(seed)
    size = 10 ** random.uniform(5, 7)
    net = nn.ModuleDict({"rnn": fused(kind, 3, hidden), "head": nn.Linear(hidden, 1)})
    made = batches(random, 10, 5, timesteps, 3)
    return Case(
        kind="saturation by the input's size",
        net=net,
        loss=last_output,
        batches=[[size * (1 + x), y] for x, y in made],
        inexact=True,  # float32 does not come to the same sums twice
        cause="saturation",
        must=(K.SATURATED_GATES,),
        steps=10,
        seed=seed,
    )


def dead_relu(random: Random) -> Case:
    """Rectified units whose input is negative whatever comes in."""
    hidden, timesteps, seed = random.choice((4, 8)), random.randint(6, 12), random.randrange(999)
    net = remembering_net(seed, "RNN_RELU", hidden)
    with torch.no_grad():
        net["rnn"].bias_ih_l0.fill_(-random.uniform(20, 60))
    return Case(
        kind="saturation: dead relu",
        net=net,
        loss=last_output,
        batches=batches(random, 10, 5, timesteps, 3),
        cause="dead relu",
        must=(K.SATURATED_GATES,),
        steps=10,
        seed=seed,
    )


def head_explosion(random: Random) -> Case:
    """A batch with an absurd number in its target: the gradients of all jump, what flows through time is as ever."""
    kind, hidden, timesteps, seed = (
        random.choice(("RNN_TANH", *GATED)),
        random.choice((4, 8)),
        random.randint(5, 8),
        random.randrange(999),
    )
    made, step = batches(random, 40, 5, timesteps, 3), random.randint(26, 34)
    made[step][1][random.randrange(5)] = -9999.0
    return Case(
        kind="explosion outside the recurrence",
        net=remembering_net(seed, kind, hidden),
        loss=last_output,
        batches=made,
        cause="outlier",
        must=(K.EXPLODING_GRADIENT,),
        never=(K.EXPLODING_HIDDEN_GRADIENT,),
        steps=40,
        every=10,
        lr=1e-2,
        where={"step": step, "batch_idx": step},
        seed=seed,
    )


def divergence(random: Random) -> Case:
    """A learning rate with which the loss runs away."""
    kind, hidden, timesteps, seed = (
        random.choice(("RNN_TANH", *GATED)),
        random.choice((4, 8)),
        random.randint(5, 8),
        random.randrange(999),
    )
    optimizer, rate = random.choice((("SGD", 3.0), ("Adam", 3.0)))
    return Case(
        kind="divergence",
        net=remembering_net(seed, kind, hidden),
        loss=last_output,
        batches=batches(random, 40, 5, timesteps, 3),
        cause="divergence",
        must=(getattr(K, "DIVERGED", "DIVERGED"), K.EXPLODING_GRADIENT, K.NONFINITE_LOSS, K.SATURATED_GATES),
        steps=40,
        every=5,
        lr=rate,
        optimizer=optimizer,
        seed=seed,
    )


def clipped_always(random: Random) -> Case:
    """A learning rate with which AdaptiveClip has to hold nearly every step."""
    hidden, timesteps, seed = random.choice((4, 8)), random.randint(5, 8), random.randrange(999)
    return Case(
        kind="divergence held by clipping",
        net=remembering_net(seed, random.choice(("RNN_TANH", "GRU")), hidden),
        loss=last_output,
        batches=batches(random, 90, 5, timesteps, 3),
        cause="divergence",
        steps=90,
        every=15,
        lr=random.uniform(15, 25),
        clip=True,
        seed=seed,
    )


def changing_hook(random: Random) -> Case:
    """A forward hook of the user's that changes what a module returns."""
    kind, hidden, timesteps, seed = (
        random.choice(FUSED),
        random.choice((4, 8)),
        random.randint(6, 9),
        random.randrange(999),
    )
    net, factor = remembering_net(seed, kind, hidden), random.choice((3.0, 0.5))
    which = random.choice(("output", "final state"))

    def change(module: nn.Module, args: Any, made: Any) -> Any:
        out, state = made
        if which == "output":
            return factor * out, state
        return out, tuple(factor * s for s in state) if isinstance(state, tuple) else factor * state

    net["rnn"].register_forward_hook(change)

    def loss(net: Any, batch: Any, i: int) -> Tensor:
        out, state = net["rnn"](batch[0])
        h = state[0] if isinstance(state, tuple) else state
        return (net["head"](out[:, -1] if which == "output" else h[-1]) - batch[1]).square().mean()

    made = batches(random, 8, 5, timesteps, 3)
    return Case(kind="a hook changes the output", net=net, loss=loss, batches=made, cause="hook", seed=seed)


KINDS = (
    masked_growth,
    growth,
    saturation,
    dead_relu,
    head_explosion,
    divergence,
    clipped_always,
    changing_hook,
)
