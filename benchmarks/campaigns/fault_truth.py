"""Where a fault first shows, from the model unrolled with PyTorch's own cells and autograd alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.campaigns.fault_models import Fault, Subject
from tests.oracles import unroll


@dataclass(frozen=True)
class Truth:
    """The place of an event; None where it does not apply, and everywhere if no event is due."""

    kind: str | None = None
    module: str | None = None
    layer: int | None = None
    direction: str | None = None
    state: str | None = None
    timestep: int | None = None
    sequence: int | None = None
    parameter: str | None = None


@dataclass
class _States:
    """One layer and direction: ``(time, batch, width)`` in the caller's time; c and its gradient for an LSTM."""

    h: Tensor
    c: Tensor | None
    h_gradient: Tensor
    c_gradient: Tensor | None


def truth_of(subject: Subject, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Truth, bool]:
    """The first place in causal order, of a step whose parameters' gradients are still there; and whether anything is not finite.

    input → gate → state → loss → hidden gradient, as seen from the loss → parameter's gradient. A stack goes layer by layer within
    a step, a bidirectional stack and one of cells step by step within a layer; on the way back the same in reverse. An event is
    due if the norm of the gradients is not finite, or the loss; on a sampled step also if a recurrent parameter is not. Under a
    loss scale, what begins on the way back is the scaler's search.
    """
    fault = subject.fault
    if fault.loop:
        given: dict[tuple[int, int], list[Tensor]] = {}
        loss, layers = _loop(subject, x, h0, c0, given)
        found = _forward_of_loop(subject, layers, x, given)
    else:
        loss, layers = _fused(subject, x, h0, c0)
        found = _forward_of_fused(subject, layers, x, h0, c0)
    if found is None and not bool(loss.isfinite()):
        found = Truth("NONFINITE_LOSS")
    found = found or _backward(fault, layers)
    gradients = [parameter.grad for parameter in subject.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    bad = [name for name, parameter in subject.named_parameters() if not _finite(parameter.grad)]
    causes = [name for name, weight in subject.named_parameters() if not _finite(weight)]
    if bool(norm.isfinite()):
        own = [name for name in causes if not name.startswith("head")]
        if fault.sampled and own:  # a sampled step looks at the weights themselves
            return Truth("NONFINITE_STATE", parameter=own[0]), True
        if found == Truth(
            "NONFINITE_LOSS"
        ):  # a constant that was added to it, say: the gradient is that of the finite rest
            return Truth("NONFINITE_LOSS"), True
        return Truth(), bool(found or bad or causes)
    if found is None and not bad:
        return Truth(), False  # the sum of the squares overflows, and nothing else
    if fault.scale != 1 and (found is None or found.kind == "NONFINITE_HIDDEN_GRADIENT"):
        return Truth("AMP_OVERFLOW"), True
    if found is None:
        return Truth("NONFINITE_GRADIENT", parameter=bad[0]), True
    return Truth(**{**vars(found), "parameter": causes[0] if causes else None}), True


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())


def _fused(subject: Subject, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, list[list[_States]]]:
    lstm = subject.fault.mode == "LSTM"
    runs = [unroll(subject.rnn, x[b], h0[:, b], c0[:, b] if lstm else None) for b in range(len(x))]
    output = torch.stack([torch.cat(run.output) for run in runs])
    h_n = torch.stack([torch.cat(run.h_n) for run in runs], 1)
    c_n = torch.stack([torch.cat(run.c_n) for run in runs], 1) if lstm else None
    loss = subject.loss(output, h_n, c_n, True)
    layers = range(subject.fault.layers)
    directions = range(1 + subject.fault.bidirectional)
    h = [[[run.h[k][d] for run in runs] for d in directions] for k in layers]
    c = [[[run.c[k][d] for run in runs] for d in directions] for k in layers]
    return loss, [[_states(loss, h[k][d], c[k][d] if lstm else None) for d in directions] for k in layers]


def _states(loss: Tensor, h: list[list[Tensor]], c: list[list[Tensor]] | None) -> _States:
    """From ``[sequence][timestep] → (1, width)``."""
    return _States(_join(h), c and _join(c), _gradients(loss, h), c and _gradients(loss, c))


def _join(values: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat(row) for row in values], 1).detach()


def _gradients(loss: Tensor, values: list[list[Tensor]]) -> Tensor:
    flat = [tensor for row in values for tensor in row]
    found = torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True)
    each = iter([torch.zeros_like(t) if g is None else g for t, g in zip(flat, found, strict=True)])
    return _join([[next(each) for _ in row] for row in values])


def _loop(
    subject: Subject, x: Tensor, h0: Tensor, c0: Tensor, given: dict[tuple[int, int], list[Tensor]]
) -> tuple[Tensor, list[list[_States]]]:
    made = subject.run_cells(x, h0, c0, True, given)
    loss = subject.loss(torch.stack([h for h, _ in made[-1]], 1), None, None, True)
    lstm = subject.fault.mode == "LSTM"
    return loss, [[_batched(loss, [h for h, _ in one], [c for _, c in one] if lstm else None)] for one in made]


def _batched(loss: Tensor, h: list[Tensor], c: list[Tensor] | None) -> _States:
    def gradients(states: list[Tensor]) -> Tensor:
        found = torch.autograd.grad(loss, states, retain_graph=True, allow_unused=True)
        return torch.stack([torch.zeros_like(s) if g is None else g for s, g in zip(states, found, strict=True)])

    return _States(torch.stack(h).detach(), c and torch.stack(c).detach(), gradients(h), c and gradients(c))


def _bad(tensor: Tensor) -> list[tuple[int, int]]:
    """``(timestep, sequence)`` of each row that is not finite."""
    return [(int(t), int(s)) for t, s in torch.nonzero(~tensor.isfinite().all(-1))]


def _initial(fault: Fault, k: int, d: int, index: int, h0: Tensor, c0: Tensor) -> Truth | None:
    for name, state in (("h", h0), ("c", c0)):
        rows = torch.nonzero(~state[index].isfinite().all(-1)).flatten().tolist()
        if rows and (name == "h" or fault.mode == "LSTM"):
            return Truth("NONFINITE_INPUT", "rnn", k, _name(d), name, None, rows[0])
    return None


def _name(direction: int) -> str:
    return ("forward", "reverse")[direction]


def _gates(mode: str, weights: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
    """What enters the nonlinearities of one step ``(batch, gate, hidden)``, as PyTorch's documentation has it."""
    a = torch.nn.functional.linear(x, weights["weight_ih"], weights["bias_ih"])
    b = torch.nn.functional.linear(h, weights["weight_hh"], weights["bias_hh"])
    if mode != "GRU":
        return (a + b).unflatten(-1, (4 if mode == "LSTM" else 1, -1)).detach()
    (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, -1), b.chunk(3, -1)
    return torch.stack([a_r + b_r, a_z + b_z, a_n + (a_r + b_r).sigmoid() * b_n], 1).detach()


GATES = {"LSTM": ("gate i", "gate f", "gate g", "gate o"), "GRU": ("gate r", "gate z", "gate n")}


def _weights(subject: Subject, k: int, d: int) -> dict[str, Tensor]:
    if subject.fault.loop:
        return dict(subject.cells[k].named_parameters())
    suffix = f"_l{k}" + "_reverse" * d
    named = dict(subject.rnn.named_parameters())
    return {name: named[name + suffix] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


def _forward_of_fused(subject: Subject, layers: list[list[_States]], x: Tensor, h0: Tensor, c0: Tensor) -> Truth | None:
    fault = subject.fault
    for k, pair in enumerate(layers):
        for d in range(len(pair)):
            found = _initial(fault, k, d, k * len(pair) + d, h0, c0)
            if found is not None:
                return found
    bad = _bad(x.transpose(0, 1))
    if bad:
        return Truth("NONFINITE_INPUT", "rnn", timestep=bad[0][0], sequence=bad[0][1])
    places = []
    names = GATES.get(fault.mode, ("gate",))
    for k, pair in enumerate(layers):
        below = x.transpose(0, 1) if k == 0 else torch.cat([states.h for states in layers[k - 1]], -1)
        for d, states in enumerate(pair):
            weights, steps = _weights(subject, k, d), len(states.h)
            for own in range(steps):
                t = steps - 1 - own if d else own
                h = states.h[t + 1 if d else t - 1] if own else h0[k * len(pair) + d]
                order = (k, own) if fault.bidirectional else (own, k)
                for s, gate in torch.nonzero(~_gates(fault.mode, weights, below[t], h).isfinite().all(-1)).tolist():
                    places.append(((*order, 0, d, s, gate), (k, d, names[gate], t, s)))
                for s in torch.nonzero(~states.h[t].isfinite().all(-1)).flatten().tolist():
                    places.append(((*order, 1, d, s, 0), (k, d, "h", t, s)))
    if not places:
        return None
    k, d, state, t, s = min(places)[1]
    return Truth("NONFINITE_STATE", "rnn", k, _name(d), state, t, s)


def _forward_of_loop(
    subject: Subject, layers: list[list[_States]], x: Tensor, given: dict[tuple[int, int], list[Tensor]]
) -> Truth | None:
    """At each step: the states that go in, the input, the gates, the states that come out."""
    mode = subject.fault.mode
    names = GATES.get(mode, ("gate",))
    for k, (states,) in enumerate(layers):
        for t in range(len(states.h)):
            made = [states.h[t]] if states.c is None else [states.h[t], states.c[t]]
            fed = x[:, t] if k == 0 else layers[k - 1][0].h[t]
            gates = zip(names, _gates(mode, _weights(subject, k, 0), fed, given[k, t][0]).unbind(1), strict=True)
            values = [*zip("hc", given[k, t], strict=False), (None, fed)]
            for place, (name, value) in enumerate([*values, *_one(gates), *zip("hc", made, strict=False)]):
                bad = torch.nonzero(~value.isfinite().all(-1)).flatten().tolist()
                if not bad:
                    continue
                came_in = name is None or (t == 0 and place < len(given[k, t]))
                kind = "NONFINITE_INPUT" if came_in else "NONFINITE_STATE"
                timestep = None if came_in and name else t
                return Truth(kind, f"cells.{k}", 0, "forward", name, timestep, bad[0])
    return None


def _one(gates: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The gate that the first bad sequence shows first: sequences come before gates."""
    bad = [(rows[0], i, name, value) for i, (name, value) in enumerate(gates) if (rows := _rows(value))]
    return [(name, value) for _, _, name, value in sorted(bad, key=lambda one: one[:2])[:1]]


def _rows(value: Tensor) -> list[int]:
    return torch.nonzero(~value.isfinite().all(-1)).flatten().tolist()


def _backward(fault: Fault, layers: list[list[_States]]) -> Truth | None:
    places = []
    for k, pair in enumerate(layers):
        for d, states in enumerate(pair):
            for name, gradient in (("h", states.h_gradient), ("c", states.c_gradient)):
                for t, s in _bad(gradient) if gradient is not None else []:
                    own = len(states.h) - 1 - t if d else t
                    order = (-k, -own) if fault.bidirectional or fault.loop else (-own, -k)
                    places.append(((*order, d, name == "c", s), (k, d, name, t, s)))
    if not places:
        return None
    k, d, name, t, s = min(places)[1]
    module, layer = (f"cells.{k}", 0) if fault.loop else ("rnn", k)
    return Truth("NONFINITE_HIDDEN_GRADIENT", module, layer, _name(d), name, t, s)
