"""On a CUDA device: the same figures, the same training, and no waiting for the device."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.engine.step import Step
from lightning_gradwatch.engine.watch import Watch
from lightning_gradwatch.events import Event, Moment
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent import Capture, profiles, sweep
from tests.asserts import assert_identical
from tests.cases import Case
from tests.models import TinyLanguageModel, sentences, trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; bits can be compared only so


@pytest.fixture(autouse=True)
def _full_precision() -> Any:
    """cuDNN's TensorFloat-32 is no float32: a profile of it says that it is not exact."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


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


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_training_on_the_gpu_is_identical_to_the_bit(cell: str, precision: str, tmp_path: Any) -> None:
    """Weights, optimizer state and the device's random stream are the same with GradWatch and without it."""

    def train(*callbacks: Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        model = TinyLanguageModel(cell, layers=2, dropout=0.3)
        options = {"accelerator": "gpu", "precision": precision, "deterministic": True, "max_steps": 8}
        run = trainer(tmp_path, callbacks, **options)
        run.fit(model, sentences())
        return {
            "weights": model.cpu().state_dict(),
            "optimizer": run.optimizers[0].state_dict(),
            "rng": (torch.get_rng_state(), torch.cuda.get_rng_state()),
        }

    watch = GradWatch(every_n_steps=2, dirpath=tmp_path / "run", summary=False)
    assert_identical(train(), train(watch))
    assert load_run(tmp_path / "run").profile_records


def test_an_ordinary_step_never_waits_for_the_device() -> None:
    """Between samples no operation of GradWatch blocks on the device: torch would raise."""
    torch.manual_seed(0)
    model = TinyLanguageModel("LSTM", layers=2).cuda()
    (words,) = next(iter(sentences()))
    words = words.cuda()
    events: list[Event] = []
    watch = Watch(
        model,
        {"rnn": model.rnn},
        WatchOptions(find_cells=False, max_sequences=2, anchors=2),
    )
    try:
        for number in range(5):
            step = Step(Moment(number), 0, number == 0, accumulation=1, scale=1.0, complete=True, scaled=False)
            model.zero_grad()
            watch.capture.begin()
            loss = model.loss(words, number)
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            watch.before_backward(loss, step)
            torch.cuda.set_sync_debug_mode("default")
            loss.backward()
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            events += watch.after_backward(loss, step).events
            events += watch.end_step(step.moment).events
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        events += watch.poll().events
    finally:
        torch.cuda.set_sync_debug_mode("default")
        watch.close()
    assert not events


@pytest.mark.parametrize("policy", ["spike", "autoclip", "zclip", "norm", "agc", "adagc"])
def test_clipping_reads_the_device_once(policy: str, tmp_path: Any) -> None:
    """A step of AdaptiveClip waits for the device at most once."""
    syncs: list[int] = []

    class Counted(AdaptiveClip):
        def on_before_optimizer_step(self, *args: Any) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                super().on_before_optimizer_step(*args)
                torch.cuda.set_sync_debug_mode("default")
            syncs.append(sum("synchronizing" in str(warning.message) for warning in caught))

    trainer(tmp_path, [Counted(policy, dirpath=tmp_path / "run")], accelerator="gpu").fit(
        TinyLanguageModel(), sentences()
    )
    assert len(syncs) == 6
    assert max(syncs) <= 1
