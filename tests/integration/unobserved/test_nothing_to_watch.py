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


class OwnCell(torch.nn.Module):
    """Found by what it is given and gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.back = torch.nn.Linear(6, 8), torch.nn.Linear(8, 8)

    def forward(self, x, h):
        return torch.tanh(self.own(x) + self.back(h))


class Loop(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = OwnCell()

    def forward(self, x):
        h, states = x.new_zeros(len(x), 8), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            states.append(h)
        return torch.stack(states, 1), None


@pytest.mark.parametrize("steps", [1, 2])
def test_a_cell_that_is_found_when_training_ends(tmp_path, steps: int) -> None:
    """It was called, and a loss reached it: the reason is that one step was too short, and two are enough."""
    model = TinyLanguageModel()
    model.rnn = Loop()
    watch, _, _ = fit(tmp_path, model, [GradWatch(dirpath=tmp_path / "run", every_n_steps=1)], max_steps=steps)
    said = [event for event in watch.events if event.kind == EventKind.NOT_OBSERVED]
    assert len(said) == (steps == 1)
    for event in said:
        assert event.module == "rnn.cell"
        assert (
            "found in the first step, to be measured from the next on, and training ended before that" in event.message
        )
        assert "two steps" in event.remedy
