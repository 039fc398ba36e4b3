"""Ω against autograd on an unrolled network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lightning_gradwatch.recurrent.control.bounded_backward import Rule
from lightning_gradwatch.recurrent.control.omega import Omega
from lightning_gradwatch.recurrent.control.through_time import ThroughTime
from lightning_gradwatch.recurrent.limit import Limit
from tests.cases import Case
from tests.unit.recurrent.control.test_through_time import fused


def unrolled(case: Case) -> dict[str, tuple[list[Tensor], list[list[Tensor]]]]:
    """For each recurrent weight the pre-activations of all sequences, in the direction's own order, and ∂L/∂ of them."""
    module = case.module()
    phi = torch.tanh if case.mode == "RNN_TANH" else torch.relu
    weights = dict(module.named_parameters())
    found: dict[str, tuple[list, list]] = {}
    for x in case.sequences():
        made: dict[str, list[Tensor]] = {}
        inputs = list(x)
        for layer in range(case.num_layers):
            outs = []
            for reverse in ("", "_reverse")[: case.directions]:
                names = [f"{kind}_l{layer}{reverse}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                w_ih, w_hh, b_ih, b_hh = (weights.get(name) for name in names)
                h, a = torch.zeros(case.hidden_size, dtype=case.dtype), []
                for value in reversed(inputs) if reverse else inputs:
                    a.append(linear(value, w_ih, b_ih) + linear(h, w_hh, b_hh))
                    h = phi(a[-1])
                made[names[1]] = a
                states = [phi(one) for one in a]
                outs.append(states[::-1] if reverse else states)
            inputs = [torch.cat(pair) for pair in zip(*outs, strict=True)]
        loss = case.loss_of(inputs, None, None)
        for name, a in made.items():
            deltas = torch.autograd.grad(loss, a, retain_graph=True, allow_unused=True)
            deltas = [torch.zeros_like(one) if d is None else d for one, d in zip(a, deltas, strict=True)]
            found.setdefault(name, ([], []))[0].append(torch.stack(a).detach())
            found[name][1].append(torch.stack(deltas))
    return found


def stated(case: Case, weight: Tensor, found: tuple[list[Tensor], list[Tensor]]) -> Tensor:
    """∂⁺Ω/∂W: eq. 9, with ∂a_{k+1}/∂a_k by autograd, states and gradients constant."""
    phi = torch.tanh if case.mode == "RNN_TANH" else torch.relu
    w = weight.detach().clone().requires_grad_()
    terms = []
    for a, delta in zip(*found, strict=True):
        for k in range(len(a) - 1):
            if float(delta[k + 1].norm()) == 0:
                continue
            at = a[k].clone().requires_grad_()
            (arriving,) = torch.autograd.grad(linear(phi(at), w), at, delta[k + 1], create_graph=True)
            terms.append((arriving.norm() / delta[k + 1].norm() - 1) ** 2)
    if not terms:
        return torch.zeros_like(w)
    (gradient,) = torch.autograd.grad(torch.stack(terms).mean(), w)
    return gradient


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU"])
@pytest.mark.parametrize(
    "case",
    [
        Case(lengths=(6, 6, 6)),
        Case(lengths=(7, 2, 1), layout="packed_sorted", loss="last"),
        Case(lengths=(5, 5), num_layers=2, bidirectional=True, layout="batch_first", bias=False),
        Case(lengths=(3, 6, 1), num_layers=2, layout="packed", gain=3.0),
        Case(lengths=(1,), layout="unbatched"),
        Case(lengths=(12, 12), loss="one"),
    ],
    ids=str,
)
def test_it_is_the_immediate_derivative_of_the_stated_sum(case: Case, mode: str) -> None:
    """Each recurrent weight's gradient gains α·∂⁺Ω, and no other parameter's changes."""
    case, alpha = replace(case, mode=mode), 0.7
    plain, _, _ = fused(case, None)
    found, _, _ = fused(case, Rule(omega=Omega(alpha, Limit(1.0))))
    oracle, weights = unrolled(case), dict(case.module().named_parameters())
    for name, gradient in plain.items():
        extra = alpha * stated(case, weights[name], oracle[name]) if name in oracle else 0.0
        torch.testing.assert_close(found[name], gradient + extra, rtol=1e-8, atol=1e-12)


def test_it_grows_weights_that_let_the_gradient_vanish() -> None:
    """A step along −∂⁺Ω brings the norm kept from step to step nearer to 1, from below and from above."""
    for gain, sign in ((0.3, 1), (6.0, -1)):
        case = Case(mode="RNN_RELU", lengths=(8, 8), gain=gain, hidden_size=8)
        with_it, _, _ = fused(case, Rule(omega=Omega(1.0, Limit(1.0))))
        without, _, _ = fused(case, None)
        pull = without["weight_hh_l0"] - with_it["weight_hh_l0"]
        weight = dict(case.module().named_parameters())["weight_hh_l0"].detach()
        assert sign * float((pull * weight).sum()) > 0


def test_it_knows_no_scale_of_the_loss() -> None:
    """Its part of the gradient is the same for a loss of any size, times what a gradient scaler multiplies."""
    case, parts = Case(mode="RNN_TANH"), []
    for scale in (1.0, 1024.0):
        module, limit = case.module(), Limit(1.0)
        limit.factor = scale
        grads = []
        for rule in (Rule(), Rule(omega=Omega(1.0, limit))):
            module.zero_grad()
            hooks = ThroughTime(rule)
            hooks.attach(module)
            (module(*case.inputs())[0].square().sum() * scale).backward()
            hooks.detach()
            grads.append(module.weight_hh_l0.grad.clone())
        parts.append((grads[1] - grads[0]) / scale)
    torch.testing.assert_close(*parts, rtol=1e-8, atol=1e-12)


def test_a_model_without_an_rnn_is_refused() -> None:
    """Ω is defined for nn.RNN alone."""
    with pytest.raises(ValueError, match=r"`omega` needs an nn.RNN.*ModuleList has none"):
        ThroughTime(Rule(omega=Omega(1.0, Limit(1.0)))).attach(nn.ModuleList([nn.LSTM(2, 2)]))
