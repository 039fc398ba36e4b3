"""The clip audit of gradients that are sharded over two processes (FSDP2)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.processes import succeed
from tests.integration.together.fsdp2_clipping import BOUNDS, LOW, STEPS
from tests.integration.together.runs import TORCHRUN
from tests.versions import needs_lightning, needs_torch

SCENARIOS = ("low", "high", "forgets", "early", "in-the-hook", "by-hand", "fails", "loop01", "loop0", "loop1")


@dataclass
class Said:
    """What the two processes of each scenario left."""

    folder: Path
    output: str

    def rank(self, scenario: str, rank: int = 0) -> dict[str, Any]:
        return json.loads((self.folder / f"{scenario}.rank{rank}.json").read_text())


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory) -> Said:
    """All scenarios, one after the other."""
    needs_torch(2, 6, "has fully_shard among what is not public")
    needs_lightning(2, 4, "has no ModelParallelStrategy")
    folder = tmp_path_factory.mktemp("fsdp2-clipping")
    done = succeed(*TORCHRUN, "-m", "tests.integration.together.fsdp2_clipping", folder, *SCENARIOS)
    return Said(folder, done.stdout + done.stderr)


@pytest.mark.slow
class TestVerdicts:
    """Each of a real training, whose norms are known from collectives of the test's own."""

    @pytest.mark.parametrize(
        ("scenario", "verdict", "kinds"),
        [
            ("low", "step limiter", {"NOT_OBSERVED", "CLIPPING_LIMITS_STEPS"}),
            ("high", "never acted", {"NOT_OBSERVED"}),
            ("forgets", "no effect although called", {"NOT_OBSERVED", "CLIPPING_WITHOUT_EFFECT"}),
            ("early", "no effect although called", {"NOT_OBSERVED", "CLIPPING_WITHOUT_EFFECT"}),
            ("loop01", "step limiter", {"NOT_OBSERVED", "CLIPPING_LIMITS_STEPS"}),
        ],
    )
    def test_the_verdict_is_true_and_its_norms_are_the_whole_ones(
        self, fsdp2: Said, scenario: str, verdict: str, kinds: set[str]
    ) -> None:
        """What is said is what was done, and the percentiles are those of the whole gradient."""
        found = fsdp2.rank(scenario)
        (said,) = found["clipping"]
        assert said["verdict"] == verdict
        assert set(found["kinds"]) == kinds
        assert said["samples"] == len(found["norms"]) == STEPS
        for percent in (50, 90, 99):
            assert said["norm_percentiles"][f"p{percent}"] == pytest.approx(
                np.percentile(found["norms"], percent), rel=1e-5
            )
        if verdict == "step limiter":
            assert said["median_coefficient"] == pytest.approx(np.median(LOW / np.array(found["norms"])), rel=1e-4)

    def test_each_optimizer_has_its_own(self, fsdp2: Said) -> None:
        """In manual optimization the one that is clipped is limited, and nothing is said to limit the other."""
        body, head = fsdp2.rank("by-hand")["clipping"]
        assert (body["verdict"], head["verdict"]) == ("step limiter", "none")
        assert body["share"] == 1.0
        assert head["share"] == 0.0

    def test_what_leaves_no_trace_is_left_open(self, fsdp2: Said) -> None:
        """Clipping by hand whose bound is not reached cannot be seen of a sharded gradient: no word is said against it."""
        found = fsdp2.rank("in-the-hook")
        (said,) = found["clipping"]
        assert (said["verdict"], said["samples"], found["kinds"]) == ("undecided", STEPS, ["NOT_OBSERVED"])
        assert "InTheHook.on_before_optimizer_step names a clipping function" in said["sentence"]
        assert "cannot be told whether that acts on them and its bound is not reached" in said["sentence"]

    def test_the_advised_bound_is_no_smaller_than_most_norms(self, fsdp2: Said) -> None:
        """The remedy names a bound that the gradients of the whole model seldom reach."""
        found = fsdp2.rank("low")
        advised = float(found["clipping"][0]["remedy"].split("to about ")[1].split(",")[0])
        assert BOUNDS["low"] < np.percentile(found["norms"], 89) <= advised <= 1.2 * max(found["norms"])


@pytest.mark.slow
class TestNobodyWaits:
    """No process is kept waiting by the norms of another."""

    def test_where_one_process_watches_no_more(self, fsdp2: Said) -> None:
        """An error of our own on one rank hangs no other, and of what it had not given nothing is claimed."""
        assert "GradWatch failed (RuntimeError: our own)" in fsdp2.output
        (said,) = fsdp2.rank("fails")["clipping"]
        assert said["verdict"] == "undecided"
        assert "not every process that holds a part of its gradients watched" in said["sentence"]

    @pytest.mark.parametrize(("scenario", "rank"), [("loop0", 0), ("loop1", 1)])
    def test_where_only_one_process_watches(self, fsdp2: Said, scenario: str, rank: int) -> None:
        """A loop that is watched on one rank alone goes on, and no verdict is made of a part of the gradient."""
        (said,) = fsdp2.rank(scenario, rank)["clipping"]
        assert (said["verdict"], said["samples"]) == ("undecided", 0)
        assert fsdp2.rank(scenario, 1 - rank)["clipping"] == []

    def test_the_other_processes_say_nothing_of_their_own(self, fsdp2: Said) -> None:
        """The first process tells what all saw; the second has no event of it, and says who has the verdict."""
        other = fsdp2.rank("low", 1)
        assert "CLIPPING_LIMITS_STEPS" not in other["kinds"]
        assert "the first process that holds a part of them tells what all saw" in other["clipping"][0]["sentence"]
