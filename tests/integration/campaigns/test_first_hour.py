"""The mistakes of a first hour: each case of the campaign, as it is at full size."""

from __future__ import annotations

import pytest
import torch

from benchmarks.campaigns import first_hour


@pytest.fixture(autouse=True)
def _as_in_the_campaign(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize("case", first_hour.CASES, ids=lambda case: case.name)
def test_a_mistake_is_told_for_what_it_is(case: first_hour.Case) -> None:
    """What has to be said is said, and nothing that would be false."""
    assert first_hour.judge(case).wrong == ()


def test_what_is_not_said_is_wrong() -> None:
    """A case that asks for another sentence, and one that forbids what is said, do not pass."""
    case = first_hour.CASES[-1]
    asks = first_hour.Case(name="", make=case.make, steps=4, says=("diverged",), never=("gradwatch report",))
    assert len(first_hour.judge(asks).wrong) == 2
