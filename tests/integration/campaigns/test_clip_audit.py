"""A slice of the clip-audit campaign: each way to clip, or to fail to, and what is said of it."""

from __future__ import annotations

from random import Random

import pytest
import torch

from benchmarks.campaigns.clip_audit import campaign
from benchmarks.campaigns.clip_audit.campaign import WAYS
from lightning_gradwatch.audit import ClippingSummary, ClipVerdict


@pytest.fixture(autouse=True, scope="module")
def quiet():
    campaign.quietly()
    yield
    torch.backends.mkldnn.set_flags(True)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_said_of_the_clipping_is_true(way: str) -> None:
    """The verdict of each optimizer is that of how the run was made, and of the norms that the clipping itself saw."""
    outcome = campaign.run(way, Random(way), seed=5, level=WAYS[way].levels[-1])
    assert outcome.wrong == []
    assert not outcome.undecided


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way, how in WAYS.items() if len(how.levels) == 3])
def test_a_bound_about_right_is_a_safety_net(way: str) -> None:
    """One step in eleven is far above the others, and the bound lies in between."""
    outcome = campaign.run(way, Random(way), seed=6, level="net")
    assert outcome.wrong == []


def test_a_wrong_word_is_found() -> None:
    """The campaign tells a verdict that is not the truth, and an event that is missing."""
    said = ClippingSummary(0, ClipVerdict.NEVER_ACTED, "", "", [], None, 9, 9, 0, 0.0, None, None, None)
    outcome = campaign.Outcome("by hand", "GRU", "SGD", "low", 1, 1.0, (said,), ())
    assert outcome.truth == (ClipVerdict.STEP_LIMITER,)
    assert len(outcome.wrong) == 1
    assert "WRONG by hand, GRU" in campaign.table([outcome])
