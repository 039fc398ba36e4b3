"""Where there is no recurrent module to watch, or no loss reaches it, that is told."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_gradwatch import EventKind, GradWatch
from tests.integration.watched import fit
from tests.models import TinyLanguageModel


def test_a_module_the_loss_does_not_use_is_not_observed(tmp_path) -> None:
    """A recurrent module that no loss reaches is reported as not observed, never as zeros."""
    model = TinyLanguageModel()
    model.unused = torch.nn.GRU(6, 4)
    watch, _, _ = fit(tmp_path, model)
    (event,) = [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]
    assert event.module == "unused"
    modules = json.loads((watch.run_dir / "run.json").read_text())["modules"]
    assert {name: module["observed"] for name, module in modules.items()} == {"rnn": True, "unused": False}


def test_a_pattern_that_matches_nothing(tmp_path) -> None:
    """The error lists the modules there are."""
    with pytest.raises(ValueError, match=r"'encoder\.\*' matches none of those there are: rnn"):
        fit(tmp_path, None, [GradWatch(modules=["encoder.*"], dirpath=tmp_path / "run")])


def test_no_recurrent_module(tmp_path) -> None:
    """One warning, and the training goes on."""
    model = TinyLanguageModel()
    model.rnn = type("Sum", (torch.nn.Module,), {"forward": lambda self, x: (torch.cat([x, x[..., :2]], -1), None)})()
    with pytest.warns(UserWarning, match="GradWatch found no recurrent module") as caught:
        _, _, run = fit(tmp_path, model, [GradWatch(dirpath=tmp_path / "run")])
    assert len([w for w in caught if "GradWatch" in str(w.message)]) == 1
    assert run.global_step == 6
