"""The sweep of a case, held against models unrolled with PyTorch's own cells and autograd."""

from __future__ import annotations

import numpy as np
import torch

from lightning_gradwatch.recurrent import Capture, profiles, sweep
from tests.cases import Case
from tests.oracles import gradients, norms, unroll

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def measure(
    case: Case,
    *,
    anchors: int = 4,
    chunk: int = 256,
    max_sequences: int | None = None,
    inputs: bool = False,
    at_once: bool | None = None,
):
    """Forward, backward and sweep of a case; also the generator state before the forward."""
    module = case.module()
    capture = Capture({"rnn": module})
    capture.attach()
    capture.begin()
    rng = torch.get_rng_state()
    output, state = module(*case.inputs())
    h_n, c_n = state if case.mode == "LSTM" else (state, None)
    total = torch.zeros((), dtype=case.dtype)
    for j in range(len(case.lengths)):
        total = total + case.loss_of(case.output_of(output, j), case.state_of(h_n, j), case.state_of(c_n, j))
    total.backward()
    after = torch.get_rng_state()
    (call,) = capture.read_calls()
    swept = sweep(call, max_sequences=max_sequences, anchors=anchors, chunk=chunk, inputs=inputs, at_once=at_once)
    assert swept.by_timestep is None
    assert torch.equal(torch.get_rng_state(), after)
    found = profiles(call, swept)
    outputs = [case.output_of(output, j).detach() for j in range(len(case.lengths))]
    capture.detach()
    return module, found, swept, outputs, rng


def masks_of(case: Case, rng: torch.Tensor) -> list[list[torch.Tensor]] | None:
    """The dropout of each sequence, drawn by PyTorch's own dropout from the same generator state."""
    if not case.dropout:
        return None
    width = (case.proj_size or case.hidden_size) * case.directions
    packed = case.layout.startswith("packed")
    steps, batch = max(case.lengths), len(case.lengths)
    order = sorted(range(batch), key=lambda j: -case.lengths[j]) if case.layout == "packed" else list(range(batch))
    torch.set_rng_state(rng)
    drawn = []
    for _ in range(case.num_layers - 1):
        shape = (sum(case.lengths), width) if packed else (steps, batch, width)
        drawn.append(torch.nn.functional.dropout(torch.ones(shape, dtype=case.dtype), case.dropout))
    if not packed:
        return [[mask[:, j] for mask in drawn] for j in range(batch)]
    rows: list[list[int]] = [[] for _ in range(batch)]
    row = 0
    for t in range(steps):
        for j in order:
            if case.lengths[j] > t:
                rows[j].append(row)
                row += 1
    return [[mask[rows[j]] for mask in drawn] for j in range(batch)]


def assert_close(found, expected, tolerance: float, what: str, largest: float = 0.0) -> None:
    """Relative error: in float64 of every single norm, however small it is beside the others. In float32 small ones are differences
    of large ones, in autograd too: there it is relative to the ``largest`` of all sequences.
    """
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    assert found.shape == expected.shape, what
    scale = (
        np.abs(expected) if tolerance == TOLERANCE[torch.float64] else max(np.abs(expected).max(initial=0.0), largest)
    )
    assert (np.abs(found - expected) <= tolerance * scale).all(), f"{what}: {found} {expected}"


def check(case: Case, **options) -> None:
    module, found, swept, outputs, rng = measure(case, **options)
    tolerance = TOLERANCE[case.dtype]
    h0, c0 = case.states()
    masks = masks_of(case, rng)
    assert all(p.exact for p in found), found[0].inexact_reason
    curves = {(p.layer, p.direction): iter(p.curves) for p in found if p.state == "h"}
    unrolled, losses = [], []
    for j, x in enumerate(case.sequences()):
        start = [None if state is None else state[:, j] for state in (h0, c0)]
        model = unroll(module, x, *start, masks[j] if masks else None)
        assert torch.allclose(torch.cat(model.output), outputs[j], rtol=tolerance * 10, atol=tolerance * 10)
        unrolled.append(model)
        losses.append(case.loss_of(model.output, model.h_n, model.c_n if case.mode == "LSTM" else None))
    largest = max(float(np.nanmax(p.total)) for p in found)  # a lower layer's is a difference of what comes from above
    for p in found:
        d = ("forward", "reverse").index(p.direction)
        for j, (model, loss) in enumerate(zip(unrolled, losses, strict=True)):
            states = model.h[p.layer][d] if p.state == "h" else model.c[p.layer][d]
            index = p.layer * case.directions + d
            if p.state == "h":
                direct = norms(gradients(loss, model.h_out[p.layer][d]))
            else:
                direct = torch.zeros(len(states), dtype=torch.float64)
                direct[0 if d else -1] = norms(gradients(loss, [model.c_n[index]]))[0]
            what = f"{p.layer} {p.direction} {p.state} sequence {j}"
            length = case.lengths[j]
            assert_close(p.total[j, :length], norms(gradients(loss, states)), tolerance, "total " + what, largest)
            assert_close(p.direct[j, :length], direct, tolerance, "direct " + what, largest)
            assert np.isnan(p.total[j, length:]).all()
    for (layer, direction), rows in curves.items():
        check_curves(case, unrolled, losses, swept, layer, direction, rows, tolerance)


def check_curves(case, unrolled, losses, swept, layer, direction, rows, tolerance) -> None:
    """Each anchor's curve is that of autograd on what the loss sends directly to the anchor."""
    d = ("forward", "reverse").index(direction)
    for a in range(len(swept.anchors)):
        for j, (model, loss) in enumerate(zip(unrolled, losses, strict=True)):
            t = int(swept.anchors.timestep[a, j])
            if t < 0:
                continue
            sent = anchor_loss(case, model, loss, t)
            order = range(t, -1, -1) if not d else range(t, case.lengths[j])
            squares = norms(gradients(sent, [model.h[layer][d][s] for s in order])) ** 2
            if case.mode == "LSTM":
                squares = squares + norms(gradients(sent, [model.c[layer][d][s] for s in order])) ** 2
            expected = squares.sqrt()
            if expected[0] == 0:
                continue
            row = next(rows)
            reach = len(expected)
            assert np.isnan(row[reach:]).all()
            ratios = expected / expected[0]
            # A ratio inherits the rounding of its denominator, which in float32 is a share of the largest norm.
            allowed = tolerance if case.dtype == torch.float64 else tolerance * float(ratios.max())
            assert_close(row[:reach], ratios, allowed, f"lagged {layer} {direction} {j} {t}")
    assert next(rows, None) is None


def anchor_loss(case: Case, model, loss, t: int):
    """L_τ: what enters through the output at τ, and through the final states that stand at τ, each with its own gradient."""
    lstm = case.mode == "LSTM"
    # The loss of copies that have no past: the gradients of these are what the loss sends directly.
    outputs = [value.detach().requires_grad_() for value in model.output]
    h_n = [value.detach().requires_grad_() for value in model.h_n]
    c_n = [value.detach().requires_grad_() for value in model.c_n] if lstm else None
    alone = case.loss_of(outputs, h_n, c_n)
    sent = [(model.output[t], outputs[t])]
    last = len(model.output) - 1
    for index in range(len(h_n)):
        if t == (0 if index % case.directions else last):
            sent.append((model.h_n[index], h_n[index]))
            if lstm:
                sent.append((model.c_n[index], c_n[index]))
    return sum((value * gradients(alone, [copy])[0]).sum() for value, copy in sent)
