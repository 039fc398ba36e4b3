"""Several processes: DDP started in every way, FSDP2, and what is said where nothing can be done."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch, load_run
from tests.asserts import assert_identical
from tests.integration.processes import succeed
from tests.integration.together.ddp import FSDP2_BOUND, SPOILT_BATCH, SPOILT_SEQUENCE, SPOILT_TIMESTEP
from tests.integration.together.runs import TORCHRUN, Runs
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import needs_lightning, needs_torch

SCENARIOS = (
    *("bare", "watched", "both", "nan", "nan-clip-first", "fails-at-start", "fails-in-step", "sees-nothing"),
    *("backward-nan",),
    *("fast-dev-run", "default-folder", "bare-accumulation", "accumulation"),
    *("through-time", "through-time-loose"),
    *("started",),
)


def callbacks(rank: dict[str, Any]) -> list[dict[str, Any]]:
    """What a rank's callbacks left."""
    return [value for value in rank.values() if isinstance(value, dict) and "run_dir" in value]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory) -> Runs:
    """All scenarios under DDP, launched by torchrun."""
    folder = tmp_path_factory.mktemp("ddp")
    done = succeed(*TORCHRUN, "-m", "tests.integration.together.ddp", folder, "ddp", *SCENARIOS)
    return Runs(folder, done.stdout + done.stderr)


@pytest.mark.slow
class TestDDP:
    """Two ranks whose sequences differ in length."""

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_ranks_end_with_equal_weights(self, ddp: Runs, scenario: str) -> None:
        """Every scenario ends, on both ranks, with the same weights and optimizer state and without a hook."""
        one, other = ddp.ranks(scenario)
        for name in ("weights", "optimizer", "global_step"):
            assert_identical(one[name], other[name])
        assert all(weight.isfinite().all() for weight in one["weights"].values())
        assert all(callback["hooks"] == 0 for rank in (one, other) for callback in callbacks(rank))
        assert one["global_step"] == (2 if scenario == "fast-dev-run" else 4)

    @pytest.mark.parametrize("scenario", ["watched", "both", "sees-nothing", "fails-in-step", "fails-at-start"])
    def test_watching_changes_no_bit(self, ddp: Runs, scenario: str) -> None:
        """Weights, optimizer state and random stream are those of the run without callbacks, whatever befalls the watching."""
        assert_identical(ddp.state("bare"), ddp.state(scenario))

    def test_watching_changes_no_bit_under_accumulation(self, ddp: Runs) -> None:
        """The same with accumulated gradients, which DDP averages at the last micro-batch only."""
        assert_identical(ddp.state("bare-accumulation"), ddp.state("accumulation"))

    def test_a_start_that_is_applied_is_the_same_on_each_rank(self, ddp: Runs) -> None:
        """Although each rank's random stream is another one: chrono shuts a unit's input gate as far as it opens the forget gate."""
        for rank in ddp.ranks("started"):
            for layer in (0, 1):
                biases = rank["weights"][f"rnn.bias_ih_l{layer}"] + rank["weights"][f"rnn.bias_hh_l{layer}"]
                shut, opened = biases.view(4, -1)[:2]
                assert float(opened.max()) > 0.5
                torch.testing.assert_close(shut, -opened, atol=0.2, rtol=0)  # it was trained since
        assert not torch.equal(*(rank["rng"] for rank in ddp.ranks("started")))

    def test_clipping_through_time_acts_on_each_rank(self, ddp: Runs) -> None:
        """A bound that no gradient reaches trains as without one, to rounding; a tight one trains otherwise, alike on both ranks."""
        bare, loose, tight = (ddp.state(scenario) for scenario in ("bare", "through-time-loose", "through-time"))
        for name, weight in bare[0]["weights"].items():
            torch.testing.assert_close(loose[0]["weights"][name], weight, rtol=1e-4, atol=1e-6)
        assert any(not torch.allclose(tight[0]["weights"][n], w, rtol=1e-3) for n, w in bare[0]["weights"].items())

    @pytest.mark.parametrize("scenario", ["nan", "nan-clip-first"])
    def test_a_nan_on_one_rank_is_one_decision_and_one_place(self, ddp: Runs, scenario: str) -> None:
        """Both ranks skip the same step; the rank that had the NaN says where, and load_run merges what all ranks wrote."""
        skips = [[e for e in events if e["kind"] == "STEP_SKIPPED"] for events in ddp.events(scenario, "AdaptiveClip")]
        assert [[event["step"] for event in rank] for rank in skips] == [[SPOILT_BATCH], [SPOILT_BATCH]]
        log = ddp.folder / f"{scenario}-log"
        assert [step["skipped"] for step in ddp.steps(scenario)] == [False, True, False, False]
        on_rank_1 = [json.loads(line) for line in (log / "events.rank1.jsonl").read_text().splitlines()][1:]
        assert [(e["kind"], e["timestep"], e["sequence"], e["rank"], e["step"]) for e in on_rank_1] == [
            ("NONFINITE_INPUT", SPOILT_TIMESTEP, SPOILT_SEQUENCE, 1, SPOILT_BATCH)
        ]
        merged = load_run(log).event_records
        assert sorted((e["kind"], e["rank"]) for e in merged) == [
            ("NONFINITE_GRADIENT", 0),
            ("NONFINITE_INPUT", 1),
            ("STEP_SKIPPED", 0),
        ]
        (elsewhere,) = [e for e in merged if e["kind"] == "NONFINITE_GRADIENT"]
        assert "may have begun on another one" in elsewhere["message"]

    def test_a_nan_on_one_ranks_way_back_is_located_with_its_rank(self, ddp: Runs) -> None:
        """What begins in rank 1's backward pass alone is located there, with the rank. Rank 0, whose averaged gradients it
        reaches, says that it came from elsewhere; both skip the step, and both look closer from then on.
        """
        log = ddp.folder / "backward-nan-log"
        events = load_run(log).event_records
        (here,) = [event for event in events if event["kind"] == "NONFINITE_HIDDEN_GRADIENT"]
        names = ("rank", "step", "module", "layer", "direction", "timestep", "sequence")
        assert [here[name] for name in names] == [
            1,
            SPOILT_BATCH,
            "rnn",
            1,
            "forward",
            SPOILT_TIMESTEP,
            SPOILT_SEQUENCE,
        ]
        (elsewhere,) = [event for event in events if event["kind"] == "NONFINITE_GRADIENT"]
        assert elsewhere["rank"] == 0
        assert "may have begun on another one" in elsewhere["message"]
        assert [step["skipped"] for step in ddp.steps("backward-nan")] == [False, True, False, False]
        skips = [
            [e["step"] for e in rank if e["kind"] == "STEP_SKIPPED"]
            for rank in ddp.events("backward-nan", "AdaptiveClip")
        ]
        assert skips == [[SPOILT_BATCH], [SPOILT_BATCH]]
        assert sorted({record["step"] for record in load_run(log).profile_records}) == [0, 1, 2]

    def test_the_runs_write_into_one_folder(self, ddp: Runs) -> None:
        """Both callbacks of both ranks write into one folder, also when one of them had failed on a rank before."""
        for scenario in ("both", "nan-clip-first", "fails-at-start", "fails-in-step", "default-folder"):
            folders = {callback["run_dir"] for rank in ddp.ranks(scenario) for callback in callbacks(rank)}
            assert len(folders) == 1, scenario
            assert not Path(f"{folders.pop()}-1").exists()
        (folder,) = {rank["GradWatch"]["run_dir"] for rank in ddp.ranks("default-folder")}
        assert Path(folder) == ddp.folder / "default" / "csv" / "version_0" / "gradwatch"

    def test_a_dry_run_writes_nothing(self, ddp: Runs) -> None:
        """fast_dev_run has no run log on any rank."""
        assert all(
            rank[name]["run_dir"] is None
            for rank in ddp.ranks("fast-dev-run")
            for name in ("GradWatch", "AdaptiveClip")
        )
        assert not (ddp.folder / "gradwatch").exists()

    def test_a_failure_is_said_and_ends_there(self, ddp: Runs) -> None:
        """Where GradWatch fails on rank 1, rank 0 goes on measuring: its profiles of both sampled steps are there."""
        assert "GradWatch failed (RuntimeError: our own)" in ddp.output
        records = load_run(ddp.folder / "fails-in-step-log").profile_records
        assert sorted({record["step"] for record in records}) == [0, 2]

    def test_profiles_are_those_of_rank_0(self, ddp: Runs) -> None:
        """Rank 0, whose sequences are the shorter ones, writes the profiles, each exact and with its own length."""
        records = load_run(ddp.folder / "both-log").profile_records
        assert {record["timesteps"] for record in records} == {5}
        assert all(record["exact"] for record in records)
        assert {record["batch_size"] for record in records} == {8}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_fork"])
def test_ddp_however_it_starts(tmp_path: Path, strategy: str) -> None:
    """Started by Lightning as scripts, by spawning or by forking: same decision, equal finite weights, events of both ranks."""
    succeed("-m", "tests.integration.together.ddp", tmp_path, strategy, "nan")
    runs = Runs(tmp_path, "")
    one, other = runs.ranks("nan")
    assert_identical(one["weights"], other["weights"])
    assert [step["skipped"] for step in runs.steps("nan")] == [False, True, False, False]
    merged = {(event["kind"], event["rank"]) for event in load_run(tmp_path / "nan-log").event_records}
    assert merged == {("NONFINITE_GRADIENT", 0), ("NONFINITE_INPUT", 1), ("STEP_SKIPPED", 0)}


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory) -> Runs:
    """The scenarios under FSDP2 on two ranks, and one process on the same batches."""
    needs_torch(2, 6, "has fully_shard among what is not public")
    needs_lightning(2, 4, "has no ModelParallelStrategy")
    folder = tmp_path_factory.mktemp("fsdp2")
    succeed("-m", "tests.integration.together.fsdp2", folder, "single")
    scenarios = ("bare", "watched", "clipped", "audited", "nan", "bare-cell", "watched-cell")
    done = succeed(*TORCHRUN, "-m", "tests.integration.together.fsdp2", folder, *scenarios)
    return Runs(folder, done.stdout + done.stderr)


@pytest.mark.slow
class TestFSDP2:
    """Weights and gradients sharded over two ranks (ModelParallelStrategy)."""

    def test_norms_and_clipping_are_those_of_one_process(self, fsdp2: Runs) -> None:
        """The norm of sharded gradients is the whole one, clipping multiplies by the same number, and the weights agree."""
        whole, sharded = fsdp2.steps("single"), fsdp2.steps("clipped")
        for name in ("grad_norm", "clip_coefficient", "clipped_norm"):
            assert [s[name] for s in sharded] == pytest.approx([s[name] for s in whole], rel=1e-5)
        assert {step["grad_norm"] > FSDP2_BOUND for step in whole} == {True, False}
        single = torch.load(fsdp2.folder / "single.rank0.pt", weights_only=False)["weights"]
        for rank in fsdp2.ranks("clipped"):
            for name, weight in rank["weights"].items():
                torch.testing.assert_close(weight, single[name], rtol=1e-4, atol=1e-6)

    def test_the_clip_audit_sees_the_whole_gradient(self, fsdp2: Runs) -> None:
        """Norms before and after clipping are those of one process, and the weights those of a run that is not watched."""
        whole = fsdp2.steps("single")
        (found,) = load_run(fsdp2.folder / "audited-log").clipping
        norms = [step["grad_norm"] for step in whole]
        acted = [step["clip_coefficient"] for step in whole if step["clip_coefficient"] < 1]
        assert found["samples"] == len(whole)
        assert found["norm_percentiles"]["max"] == pytest.approx(max(norms), rel=1e-5)
        assert found["median_coefficient"] == pytest.approx(median(acted), rel=1e-4)
        assert (found["share"], found["clipped_steps"]) == (len(acted) / len(whole), len(acted))
        assert "GradWatch failed" not in fsdp2.output
        bare, watched = fsdp2.ranks("clipped"), fsdp2.ranks("audited")
        assert_identical([rank["weights"] for rank in bare], [rank["weights"] for rank in watched])

    def test_a_nan_on_one_rank_is_skipped_on_both(self, fsdp2: Runs) -> None:
        """A NaN on rank 1 alone is a skip everywhere, and the shards stay finite and of one piece."""
        assert [step["skipped"] for step in fsdp2.steps("nan")] == [False, True, False, False]
        one, other = fsdp2.ranks("nan")
        assert_identical(one["weights"], other["weights"])
        assert all(weight.isfinite().all() for weight in one["weights"].values())
        assert math.isnan(fsdp2.steps("nan")[1]["grad_norm"])

    @pytest.mark.parametrize("kind", ["", "-cell"], ids=["fused", "a cell of one's own"])
    def test_watching_says_what_it_does_not_see(self, fsdp2: Runs, kind: str) -> None:
        """GradWatch names the sharded module once as not observed, with the reason, and changes no bit."""
        (event,) = load_run(fsdp2.folder / f"watched{kind}-log").event_records
        assert (event["kind"], event["module"]) == ("NOT_OBSERVED", "net.rnn")
        assert "sharded over the processes" in event["message"]
        assert fsdp2.output.count("GradWatch does not observe net.rnn") == 1  # Python shows the same warning once
        assert "GradWatch failed" not in fsdp2.output
        one, other = fsdp2.ranks(f"bare{kind}"), fsdp2.ranks(f"watched{kind}")
        assert_identical([rank["weights"] for rank in one], [rank["weights"] for rank in other])


class LooksAtHooks(Callback):
    """Counts the hooks on the recurrent layer while it trains."""

    def __init__(self) -> None:
        self.hooks: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.hooks.append(len(pl_module.rnn._forward_hooks))


@pytest.mark.parametrize(
    ("name", "watch_reason", "clip_reason"),
    [
        ("DeepSpeedStrategy", "DeepSpeed's engine owns its weights", "DeepSpeed clips and steps inside its own engine"),
        ("FSDPStrategy", "under FSDP 1 its weights are gone", "under FSDP 1 each rank sees only its shards"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, name: str, watch_reason: str, clip_reason: str) -> None:
    """Under DeepSpeed and FSDP 1 each callback says in one warning that it does nothing and why; the training goes on untouched."""
    stand_in = type(name, (SingleDeviceStrategy,), {})(device=torch.device("cpu"))
    look, watch, clip = LooksAtHooks(), GradWatch(), AdaptiveClip("norm")
    run = trainer(tmp_path, [look, watch, clip], strategy=stand_in)
    with pytest.warns(UserWarning, match="GradWatch does not observe") as caught:
        run.fit(TinyLanguageModel(), sentences())
    messages = [str(w.message) for w in caught if "GradWatch" in str(w.message) or "AdaptiveClip" in str(w.message)]
    assert len(messages) == 2
    assert any(f"GradWatch does not observe rnn: {watch_reason}" in message for message in messages)
    assert any(f"AdaptiveClip does nothing in this fit: {clip_reason}" in message for message in messages)
    assert [(event.kind, event.module) for event in watch.events] == [(EventKind.NOT_OBSERVED, "rnn")]
    assert watch_reason in watch.events[0].message.replace("Under", "under")
    assert set(look.hooks) == {0}
    assert (clip.events, run.global_step) == ([], 6)
