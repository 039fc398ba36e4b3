"""A run that is too short for a verdict says how it gets one, and so it does."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from lightning_gradwatch import GradWatch
from lightning_gradwatch.runlog.verdict import Verdict
from tests.models import TinyLanguageModel, sentences, trainer


def closing_lines(tmp_path: Any, caplog: Any, steps: int, every: int) -> tuple[str, GradWatch]:
    caplog.clear()
    watch = GradWatch(every_n_steps=every)
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, [watch], max_steps=steps).fit(TinyLanguageModel(), sentences(64, length=30))
    return caplog.text, watch


@pytest.mark.parametrize(("steps", "every"), [(30, 50), (24, 20), (5, 4)])
def test_it_names_a_rate_with_which_there_is_a_verdict(tmp_path, caplog, steps: int, every: int) -> None:
    """Of the run at hand; followed, there are as many samples as it says, and a verdict."""
    said, _ = closing_lines(tmp_path / "few", caplog, steps, every)
    named = re.search(rf"every_n_steps=(\d+) takes (\d+) in {steps}\.", said)
    assert named is not None
    again, watch = closing_lines(tmp_path / "more", caplog, steps, int(named[1]))
    assert {layer.samples for layer in watch.verdicts} == {int(named[2])}
    assert Verdict.UNDECIDED not in {layer.verdict for layer in watch.verdicts}
    assert "sample more often" not in again


@pytest.mark.parametrize(("steps", "every"), [(12, 2), (2, 1), (3, 50)])
def test_it_is_not_said_where_it_is_of_no_use(tmp_path, caplog, steps: int, every: int) -> None:
    """With samples enough, and in a run in which no rate would take three."""
    said, _ = closing_lines(tmp_path, caplog, steps, every)
    assert ("sample more often" in said) == (steps == 3)
