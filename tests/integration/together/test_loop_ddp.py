"""Two processes that train together without a Trainer, watched on one of them or on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradwatch import load_run
from tests.asserts import assert_identical
from tests.integration.processes import succeed
from tests.integration.together.loop_ddp import SPOILT_STEP


def trained(out: Path, watching: str) -> list[dict[str, Any]]:
    out.mkdir()
    succeed("-m", "tests.integration.together.loop_ddp", out, watching)
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    base = tmp_path_factory.mktemp("loops")
    return {which: (base / f"of{which}", trained(base / f"of{which}", which)) for which in ("", "01", "0")}


@pytest.mark.parametrize("watching", ["01", "0"])
def test_the_training_is_that_of_nobody_watching(watching: str, runs: Any) -> None:
    """Weights and random streams of both ranks; a watch on rank 0 alone waits for nobody."""
    for bare, watched in zip(runs[""][1], runs[watching][1], strict=True):
        assert_identical(bare["weights"], watched["weights"])
        assert_identical(bare["random"], watched["random"])


def test_one_run_log_has_the_events_of_both(runs: Any) -> None:
    """Rank 1, whose input is spoilt, names the place; rank 0 learns it from its averaged gradients, and says that it may be elsewhere."""
    folder, ranks = runs["01"]
    assert ("NONFINITE_INPUT", "rnn", 3, 1) in map(tuple, ranks[1]["events"])
    events = load_run(folder / "run").event_records
    assert {(event["rank"], event["kind"]) for event in events if event["step"] == SPOILT_STEP} >= {
        (1, "NONFINITE_INPUT"),
        (0, "NONFINITE_GRADIENT"),
    }
    said = [event["message"] for event in events if event["kind"] == "NONFINITE_GRADIENT"]
    assert all("it may have begun on another one" in message for message in said)


@pytest.mark.parametrize("watching", ["01", "0"])
def test_the_profiles_are_of_rank_0(watching: str, runs: Any) -> None:
    """Each step's once."""
    profiles = load_run(runs[watching][0] / "run").profile_records
    of_the_cell = [record["step"] for record in profiles if record["module"] == "cell"]
    assert of_the_cell == [0, 1, 2, 3]
    assert {record["timesteps"] for record in profiles} == {5}
