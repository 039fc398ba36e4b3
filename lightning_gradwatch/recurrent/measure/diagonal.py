"""Diagonal recurrences, all timesteps at once: x_t = f_t ⊙ x_{t−1} + v_t, and its adjoint.

Tensors are time-major, ``(time, …)``. A factor that is the same at all timesteps may have one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes


def adjoint(
    decay: axes.Inexact[Tensor, "#time ..."], direct: axes.Inexact[Tensor, "time ..."]
) -> axes.Inexact[Tensor, "time ..."]:
    """g_t = d_t + ā_{t+1} ⊙ g_{t+1}: the total gradient of the states of h_t = a_t ⊙ h_{t−1} + b_t.

    Complex gradients are as PyTorch has them, ∂L/∂Re h + i ∂L/∂Im h.
    """
    factors = decay.conj().resolve_conj()
    if direct.device.type != "cpu":
        return by_doubling(factors, direct, backwards=True)
    if len(factors) > 1:
        factors = factors.roll(-1, 0).flip(0)
    return by_timestep(factors, direct.flip(0)).flip(0)


def shrinkage(decay: axes.Inexact[Tensor, "#time ..."], timestep: int) -> axes.Float[Tensor, "lag ..."]:
    """|∏_{j=τ−k+1..τ} a_j| for every lag k up to τ = ``timestep``: ``(lag, …)``, 1 at lag 0.

    A decay of 0 leaves exact zeros from its lag on; no logarithm is taken.
    """
    size = decay.abs()
    back = size[1 : timestep + 1].flip(0) if len(size) > 1 else size.expand(timestep, *size.shape[1:])
    return torch.cat([torch.ones_like(size[:1]), back]).cumprod(0)


def by_timestep(
    factors: axes.Inexact[Tensor, "#time ..."], values: axes.Inexact[Tensor, "time ..."]
) -> axes.Inexact[Tensor, "time ..."]:
    """x_t = f_t ⊙ x_{t−1} + v_t with x_{−1} = 0, one operation a timestep, which on a CPU is the
    cheapest. The first factor is not used.
    """
    made = values.clone()
    states = made.unbind(0)
    each = factors.unbind(0) if len(factors) > 1 else factors.unbind(0) * len(states)
    for t in range(1, len(states)):
        states[t].addcmul_(each[t], states[t - 1])
    return made


def by_doubling(
    factors: axes.Inexact[Tensor, "#time ..."],
    values: axes.Inexact[Tensor, "time ..."],
    *,
    backwards: bool = False,
    contracting: bool = False,
) -> axes.Inexact[Tensor, "time ..."]:
    """The same in O(log time) operations: each state is known from ever more timesteps before
    (Hillis and Steele 1986; Blelloch 1990).

    Args:
        backwards: x_t = v_t + f_{t+1} ⊙ x_{t+1} instead.
        contracting: no factor is larger than 1, so that no product of them leaves the numbers;
            three operations a doubling.
    """
    made, reach, time = values, 1, len(values)
    through = factors[1:] if len(factors) > 1 else factors.expand(max(time - 1, 0), *factors.shape[1:])
    while reach < time:
        early, late = slice(None, time - reach), slice(reach, None)
        into, of, known = (early, late, slice(time - reach, None)) if backwards else (late, early, slice(None, reach))
        further = torch.empty_like(made)
        further[known] = made[known]
        if contracting:
            torch.addcmul(made[into], through, made[of], out=further[into])
        else:
            torch.add(made[into], _carried(through, made[of]), out=further[into])
        through, made = through[:-reach] * through[reach:], further
        reach *= 2
    return made


def _carried(through: Tensor, before: Tensor) -> Tensor:
    """A product that has left the numbers carries nothing where nothing comes in."""
    return torch.where(before == 0, before, through * before)
