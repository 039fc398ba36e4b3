"""However a fit ends, its hooks come off; the callback is copied within it and used again after it."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_gradwatch import GradWatch, load_run
from tests.integration.watched import fit
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import INTERRUPT_EXITS


@pytest.mark.parametrize("way", ["end", "exception", "interrupt", "exception in an earlier callback"])
def test_hooks_come_off_on_every_way_out(way: str, tmp_path) -> None:
    """However a fit ends, no hook stays on the module."""

    class Leave(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            assert len(pl_module.rnn._forward_hooks) == 1
            if way == "exception":
                raise RuntimeError("the user's own")
            if way == "interrupt":
                raise KeyboardInterrupt

        def on_exception(self, trainer, pl_module, exception) -> None:
            if way.endswith("callback"):
                raise ValueError("the user's other one")

        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            if way.endswith("callback"):
                raise RuntimeError("the user's own")

    model = TinyLanguageModel()
    watch = GradWatch(dirpath=tmp_path / "run")
    run = trainer(tmp_path, [Leave(), watch], max_steps=2)
    returns = way == "end" or (way == "interrupt" and not INTERRUPT_EXITS)
    leaving = contextlib.nullcontext() if returns else pytest.raises((RuntimeError, ValueError, SystemExit))
    with leaving:
        run.fit(model, sentences())
    if way.endswith("callback"):
        watch.on_train_start(run, model)  # where not even on_exception fires, the next start cleans up
        watch.teardown(run, model, "fit")
    assert not model.rnn._forward_hooks
    assert not model.rnn._forward_pre_hooks


def test_a_copy_holds_no_model(tmp_path) -> None:
    """deepcopy and pickle work at any moment of a fit and drag neither model nor trainer along."""
    sizes: list[int] = []

    class Copy(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            watch = trainer.callbacks[0]
            copied = copy.deepcopy(watch)
            assert copied._fit is None
            assert copied._found.trainer is None
            sizes.append(len(pickle.dumps(watch)))
            assert not any(isinstance(v, torch.nn.Module) and not hasattr(v, "compute") for v in vars(copied).values())
            inert = copy.deepcopy(pl_module)
            inert.loss(batch[0], 0)
            pickle.loads(pickle.dumps(pl_module.rnn))

    watch = GradWatch(every_n_steps=1, dirpath=tmp_path / "run")
    fit(tmp_path, TinyLanguageModel(hidden=64), [watch, Copy()])
    assert max(sizes) < 200_000


def test_one_instance_serves_two_fits_afresh(tmp_path) -> None:
    """Reused for another model, an instance begins anew, in a folder of its own."""
    watch = GradWatch(dirpath=tmp_path / "run")
    fit(tmp_path, TinyLanguageModel("GRU"), [watch])
    first = watch.run_dir
    fit(tmp_path, TinyLanguageModel("LSTM"), [watch])
    assert first == tmp_path / "run"
    assert watch.run_dir == tmp_path / "run-1"
    assert {record["kind"] for record in load_run(watch.run_dir).profile_records} == {"LSTM"}
