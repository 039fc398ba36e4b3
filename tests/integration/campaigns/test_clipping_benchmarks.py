"""A slice of the clipping benchmarks: the same code, on seeds of their own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.clipping import ablation, first_steps, temporal_order
from benchmarks.clipping import compare as clipping
from benchmarks.clipping.methods import methods
from benchmarks.clipping.problems import problems
from lightning_gradwatch.clip import Spike

METHODS = {f"{m.family} {m.setting}".strip(): m for m in methods()}
SPIKE = METHODS["ours: spike default"]


def problem(regime: str, name: str, steps: int):
    (found,) = (p for p in problems() if p.regime == regime and p.name == name)
    return replace(found, steps=steps)


@pytest.mark.parametrize("name", [p.name for p in problems() if p.regime == "healthy"])
def test_spike_leaves_a_healthy_run_alone(name: str) -> None:
    """Not one step is clipped, and it ends where the run without clipping does."""
    healthy = problem("healthy", name, 60)
    with_it, without = clipping.train(healthy, SPIKE, 500), clipping.train(healthy, METHODS["none"], 500)
    assert with_it.clipped == 0
    assert with_it.loss == without.loss


def test_spike_leaves_first_steps_alone() -> None:
    """While there is next to no history, in healthy runs drawn at random; a run that diverges is none, and is held."""
    judged = [first_steps.judge(seed, 12) for seed in range(5000, 5006)]
    assert [well for well, _ in judged].count(True) == 5
    assert all(bool(found) is not well for well, found in judged)


def test_spike_holds_what_spikes_would_end() -> None:
    """The run without clipping is lost; with it, it ends near the one that had no spikes."""
    spiked, healthy = problem("spikes", "characters, LSTM", 100), problem("healthy", "characters, LSTM", 100)
    assert clipping.train(spiked, METHODS["none"], 500).diverged
    held = clipping.train(spiked, SPIKE, 500)
    assert not held.diverged
    assert 0 < held.clipped < 0.1
    assert held.loss < 1.05 * clipping.train(healthy, METHODS["none"], 500).loss


def test_spike_holds_a_rate_that_is_too_high() -> None:
    """At the rate that language models are trained with when clipped, steps longer than the weights are cut."""
    unstable = problem("unstable", "characters, LSTM, rate 30", 100)
    assert clipping.train(unstable, METHODS["none"], 501).loss > unstable.chance
    assert clipping.train(unstable, SPIKE, 501).loss < unstable.chance


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name: str) -> None:
    """Each takes some steps with spikes, and its share of clipped steps is a share."""
    run = clipping.train(problem("spikes", "order, LSTM, Adam", 6), METHODS[name], 500)
    assert 0 <= run.clipped <= 1
    assert run.loss > 0


def test_a_verdict_needs_all_three() -> None:
    """Spike is held to survival, to leaving steps alone, and to the best rival's loss."""
    run = lambda loss, diverged=False, clipped=0.0: clipping.Run(loss, diverged, clipped)  # noqa: E731
    row = lambda method, *runs: clipping.Row(method, runs, 1.0)  # noqa: E731
    steady, lost = row(METHODS["fixed norm 1"], run(0.5), run(0.5)), row(METHODS["none"], run(0.5), run(math.inf, True))
    assert clipping.verdict([row(SPIKE, run(0.4), run(0.4)), steady, lost])[:3] == (True, True, True)
    assert clipping.verdict([row(SPIKE, run(0.6), run(9.0, True, 0.1)), steady, lost])[:3] == (False, False, False)
    assert clipping.verdict([row(SPIKE, run(0.4), run(9.0, True)), lost])[0]


@pytest.mark.parametrize("method", temporal_order.METHODS)
def test_the_papers_problem_runs(method: str) -> None:
    """A few updates of each method end with finite weights and an error that is one."""
    torch.manual_seed(0)
    outcome = temporal_order.train(method, 20, 0, 3)
    assert outcome.finite
    assert outcome.solved is None
    assert 0.5 < outcome.error < 1.0


def test_the_ablation_knows_every_constant() -> None:
    """Each number that the default rule rests on is in its list, at the value it is tried beside, and is left as it was."""
    named = {(constant.where, constant.name): constant for constant in ablation.CONSTANTS}
    modules = {constant.where for constant in ablation.CONSTANTS if constant.where}
    own = {
        (module, name)
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and type(value) in (int, float)
    }
    assert {key for key in named if key[0] is not None} == own
    assert {name for where, name in named if where is None} == set(Spike._arguments)
    for (where, name), constant in named.items():
        value = constant.half or constant.double
        with constant.at(value) as make:
            policy = make()
            tried = getattr(where or policy, name)
        before = getattr(where or Spike(), name)
        assert tried == value != before


def test_the_ablation_counts_what_each_setting_clips() -> None:
    """Of a plain run nothing; of one with a rare class what the rule takes for an explosion."""
    plain, rare = (ablation.record(kind, cell=True, adam=True) for kind in ("plain", "rare"))
    assert ablation.touched([plain], Spike) == "0"
    assert 0 < int(ablation.touched([rare], Spike)) < 10
    assert ablation.touched([plain, rare], Spike) == ablation.touched([rare], Spike)
