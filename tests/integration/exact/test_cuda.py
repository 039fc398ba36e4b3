"""On a CUDA device the figures are those of the CPU, or say that they are not exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gradwatch import GradWatch, load_run
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent import Capture, profiles, sweep
from tests.cases import Case
from tests.integration.cuda import ON_CUDA, full_precision
from tests.models import TinyLanguageModel, sentences, trainer

__all__ = ["full_precision"]

pytestmark = [*ON_CUDA, pytest.mark.usefixtures("full_precision")]


def measured(case: Case, device: str) -> list[Profile]:
    module = case.module().to(device)
    inputs = [tuple(s.to(device) for s in x) if type(x) is tuple else x.to(device) for x in case.inputs()]
    capture = Capture({"rnn": module})
    capture.attach()
    capture.begin()
    output, state = module(*inputs)
    h_n, c_n = state if case.mode == "LSTM" else (state, None)
    losses = [
        case.loss_of(
            case.output_of(output, j).cpu(),
            case.state_of(h_n, j).cpu(),
            None if c_n is None else case.state_of(c_n, j).cpu(),
        )
        for j in range(len(case.lengths))
    ]
    sum(losses).backward()
    (call,) = capture.take()
    found = profiles(call, sweep(call))
    capture.detach()
    return found


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
@pytest.mark.parametrize("layout", ["time_major", "batch_first", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cudnn_is_measured_as_the_cpu_is(mode: str, layout: str, bidirectional: bool, dtype: torch.dtype) -> None:
    """Under cuDNN every profile is exact and equals that of the same module on the CPU, which autograd confirms elsewhere."""
    lengths = (3, 7, 5) if layout == "packed" else (7, 7, 7)
    case = replace(Case(mode=mode, layout=layout, lengths=lengths, num_layers=2, loss="everything"), dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    for p, q in zip(
        measured(replace(case, bidirectional=bidirectional), "cuda"),
        measured(replace(case, bidirectional=bidirectional), "cpu"),
        strict=True,
    ):
        assert p.exact, p.inexact_reason
        assert np.allclose(p.total, q.total, rtol=tolerance, atol=tolerance * np.nanmax(q.total), equal_nan=True)
        assert np.allclose(p.curves, q.curves, rtol=tolerance * 10, atol=tolerance, equal_nan=True)


def test_dropout_inside_cudnn_is_said_to_be_inexact(tmp_path: Any) -> None:
    """cuDNN keeps its own dropout state: the profile of lower layers cannot be exact, and says why."""
    watch = GradWatch(dirpath=tmp_path / "run", summary=False)
    trainer(tmp_path, [watch], accelerator="gpu", max_steps=2).fit(
        TinyLanguageModel(layers=2, dropout=0.5), sentences()
    )
    reasons = {record["inexact_reason"] for record in load_run(tmp_path / "run").profile_records}
    assert reasons == {"the dropout between layers on cuda cannot be drawn again"}
