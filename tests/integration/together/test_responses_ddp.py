"""An anomaly on rank 1 alone: both ranks act alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_gradwatch import load_run
from lightning_gradwatch.cli import main
from tests.asserts import assert_identical
from tests.integration.processes import succeed
from tests.integration.together.ddp_responses import SEQUENCE, SPOILT_BATCH, TIMESTEP
from tests.integration.together.runs import TORCHRUN, Runs

SCENARIOS = ("bare", "ready", "bare-skip", "skip", "bare-rollback", "rollback", "stop", "raise", "fails")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """All scenarios, launched by torchrun."""
    folder = tmp_path_factory.mktemp("ddp")
    done = succeed(*TORCHRUN, "-m", "tests.integration.together.ddp_responses", folder, *SCENARIOS)
    return Runs(folder, done.stdout + done.stderr)


@pytest.mark.parametrize("response", ["skip", "rollback"])
def test_both_ranks_do_the_same(runs: Runs, response: str) -> None:
    """Weights and optimizer end equal on both ranks, as if the batches that were left out had had no gradients."""
    one, other = runs.state(response)
    for name in ("weights", "optimizer", "global_step"):
        assert_identical(one[name], other[name])
    expected, _ = runs.state(f"bare-{response}")
    assert_identical(one["weights"], expected["weights"])
    assert_identical(one["optimizer"], expected["optimizer"])
    assert one["global_step"] == 8
    action = {"skip": "skipped", "rollback": "rolled back"}[response]
    for rank, events in enumerate(runs.events(response, "GradWatch")):
        (did,) = [event for event in events if event["kind"] == "STEP_SKIPPED"]
        assert (did["step"], did["action"], did["rank"]) == (SPOILT_BATCH, action, rank)
        assert "Because of NONFINITE_INPUT at rnn" in did["message"]
    assert [
        e["rank"] for e in load_run(runs.folder / f"{response}-log").event_records if e["kind"] == "STEP_SKIPPED"
    ] == [0]


def test_a_healthy_run_stays_identical_to_the_bit(runs: Runs) -> None:
    """Being ready to act and to write bundles changes nothing on either rank."""
    assert_identical(runs.state("bare"), runs.state("ready"))


def test_both_ranks_stop(runs: Runs) -> None:
    """The spoilt step is the last on both, and is not taken."""
    one, other = runs.state("stop")
    assert one["global_step"] == other["global_step"] == SPOILT_BATCH + 1
    assert_identical(one["weights"], other["weights"])
    assert all(weight.isfinite().all() for weight in one["weights"].values())


def test_both_ranks_raise_the_same(runs: Runs) -> None:
    """Rank 0, which saw nothing itself, raises rank 1's event too."""
    one, other = ((runs.folder / f"raise.rank{rank}.txt").read_text() for rank in (0, 1))
    assert one == other
    assert f"NONFINITE_INPUT at optimizer step {SPOILT_BATCH} (epoch 0, batch {SPOILT_BATCH}, rank 1)" in one
    assert f"timestep {TIMESTEP}, sequence {SEQUENCE}" in one


def test_a_failure_of_our_own_leaves_nobody_waiting(runs: Runs) -> None:
    """Where watching fails on rank 1, both ranks go on deciding together, from the gradients."""
    one, other = runs.state("fails")
    assert_identical(one["weights"], other["weights"])
    assert all(weight.isfinite().all() for weight in one["weights"].values())
    assert "GradWatch failed (RuntimeError: our own)" in runs.output


def test_the_rank_that_saw_it_writes_the_bundle(runs: Runs, capsys) -> None:
    """It replays in one process with the same event; rank 0's, which has a sound batch, shows none."""
    folder = Path(runs.folder / "skip-log" / "bundles")
    assert len(list(folder.iterdir())) == 2
    model = ["--module", "tests.integration.together.ddp_responses:LateModel", "--args", '{"spoil": false}']
    for rank, code in ((1, 0), (0, 1)):
        bundle = folder / f"step{SPOILT_BATCH:06d}-batch{SPOILT_BATCH}-rank{rank}.pt"
        assert main(["replay", str(bundle), *model]) == code
        assert ("the same event" if rank else "no event") in capsys.readouterr().out
