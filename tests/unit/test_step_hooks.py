"""Hooks on the steps of optimizers are called, also once something was compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_gradwatch import Norm, clip_adaptively, load_run, watch
from lightning_gradwatch.step_hooks import keep_step_hooks
from tests.versions import TORCH

KINDS = [torch.optim.SGD, torch.optim.AdamW, torch.optim.SparseAdam]


@pytest.fixture(autouse=True)
def _something_was_compiled() -> None:
    torch.compile(torch.relu, backend="eager")(torch.zeros(1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_hook_is_called_once_a_step(kind: Callable[..., torch.optim.Optimizer]) -> None:
    """However often it was seen to."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = kind([weight], lr=0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    for _ in range(3):
        keep_step_hooks()
    optimizer.step()
    assert calls == ["before", "after"]


def test_no_step_function_is_replaced_where_pytorch_keeps_hooks() -> None:
    """Only PyTorch 2.2 lets go of them."""
    before = [kind.step for kind in KINDS]
    keep_step_hooks()
    assert [kind.step for kind in KINDS] == before or TORCH < (2, 4)


def test_a_loop_is_clipped_and_watched(tmp_path) -> None:
    """The steps are heard."""
    model = nn.RNN(2, 3, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    clipping = clip_adaptively(optimizer, Norm(max_norm=1e-3))
    before = [p.detach().clone() for p in model.parameters()]
    with watch(model, optimizer, every_n_steps=1, dirpath=tmp_path / "run"), clipping:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 4, 2))[0].pow(2).sum().backward()
            optimizer.step()
    moved = sum((p - q).pow(2).sum() for p, q in zip(model.parameters(), before, strict=True)).sqrt()
    assert moved.item() == pytest.approx(2e-4, rel=0.05)
    assert [record["step"] for record in load_run(tmp_path / "run").profile_records] == [0, 1]
