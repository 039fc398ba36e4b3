"""An error of our own, or of what the user gave us to call, does not end the training."""

from __future__ import annotations

import math

import pytest

from lightning_gradwatch import GradWatch
from tests.integration.watched import fit
from tests.models import TinyLanguageModel


def test_a_failing_on_event_harms_nothing(tmp_path) -> None:
    """An error in the user's callable is one warning; the events are kept."""

    def fail(event):
        raise RuntimeError("mine")

    model = TinyLanguageModel(before_rnn=lambda x, i: x * math.nan if i == 1 else x)
    watch = GradWatch(dirpath=tmp_path / "run", on_event=fail)
    with pytest.warns(UserWarning, match="`on_event` failed"):
        fit(tmp_path, model, [watch])
    assert len(watch.events) == 1


def test_an_error_of_our_own_ends_the_watching_only(tmp_path, monkeypatch) -> None:
    """If the measurement itself fails, there is one warning, the hooks come off and the training ends as it would."""
    monkeypatch.setattr(GradWatch, "raise_own_errors", False)
    monkeypatch.setattr("lightning_gradwatch.recurrent.measure.by_kind.sweep", lambda *args, **kwargs: 1 / 0)
    model = TinyLanguageModel()
    with pytest.warns(UserWarning, match="GradWatch failed .*ZeroDivisionError"):
        _, _, run = fit(tmp_path, model)
    assert run.global_step == 6
    assert not model.rnn._forward_hooks
