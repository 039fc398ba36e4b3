"""Holds the influence that was measured of inputs against autograd."""

from __future__ import annotations

import numpy as np
import torch

from tests.cases import Case
from tests.oracles import gradients, norms, unroll
from tests.sweeps import TOLERANCE, anchor_loss, assert_close, masks_of, measure


def check(case: Case, **options) -> None:
    """∂L/∂x_t of the whole loss, and ∂L_τ/∂x_t of each anchor, earlier inputs and later ones."""
    module, found, swept, _, rng = measure(case, inputs=True, **options)
    profiles = {p.direction: p for p in found if p.state == "x"}
    assert list(profiles) == ["forward", "reverse"][: case.directions]
    h0, c0 = case.states()
    masks, tolerance = masks_of(case, rng), TOLERANCE[case.dtype]
    rows = {direction: iter(p.curves) for direction, p in profiles.items()}
    models = []
    for j, x in enumerate(case.sequences()):
        start = [None if state is None else state[:, j] for state in (h0, c0)]
        leaf = x.requires_grad_()
        model = unroll(module, leaf, *start, masks[j] if masks else None)
        models.append((leaf, model, case.loss_of(model.output, model.h_n, model.c_n if case.mode == "LSTM" else None)))
    largest = max(float(np.nanmax(p.total)) for p in found)
    for j, (leaf, _, loss) in enumerate(models):
        expected = norms(list(gradients(loss, [leaf])[0]))
        for profile in profiles.values():
            assert_close(profile.total[j, : case.lengths[j]], expected, tolerance, f"total {j}", largest)
            assert np.isnan(profile.total[j, case.lengths[j] :]).all()
    for a in range(len(swept.anchors)):
        for j, (leaf, model, loss) in enumerate(models):
            t = int(swept.anchors.timestep[a, j])
            if t < 0:
                continue
            whole = norms(list(gradients(anchor_loss(case, model, loss, t), [leaf])[0]))
            if whole[t] == 0:
                continue
            for direction, curve in (("forward", whole[: t + 1].flip(0)), ("reverse", whole[t:])):
                if direction in rows:
                    check_row(next(rows[direction]), curve, case, f"{direction} {j} {t}")
    assert all(next(left, None) is None for left in rows.values())


def check_row(row: np.ndarray, expected: torch.Tensor, case: Case, what: str) -> None:
    ratios, tolerance = expected / expected[0], TOLERANCE[case.dtype]
    allowed = tolerance if case.dtype == torch.float64 else tolerance * float(ratios.max())
    assert_close(row[: len(ratios)], ratios, allowed, what)
    assert np.isnan(row[len(ratios) :]).all()
