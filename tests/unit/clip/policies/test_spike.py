"""Spike: nothing on a healthy run, everything on an exploding one."""

# Over 300 lines: each rule of the default policy has its test, and they are read beside one another.
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.clip import Spike, StepReading
from tests.unit.clip.policies.streams import decide_all, lognormal


def clipped(stream: list[float], policy: Spike | None = None) -> list[int]:
    """The steps that were clipped."""
    decisions = decide_all(policy or Spike(), stream)
    return [step for step, decision in enumerate(decisions) if decision.coefficient < 1]


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_stationary_run_is_never_clipped(spread: float, seed: int) -> None:
    """Norms that only scatter are ordinary, from the first step on."""
    assert clipped(lognormal(2000, spread=spread, seed=seed)) == []


@pytest.mark.parametrize("rate", [-0.02, -0.002, 0.002, 0.02])
def test_a_drift_is_never_clipped(rate: float) -> None:
    """Norms that rise or fall by 2 % a step are ordinary: a warm-up, a decay, a network that sharpens."""
    assert clipped([n * math.exp(rate * i) for i, n in enumerate(lognormal(1000, spread=0.2))]) == []


@settings(max_examples=30, deadline=None)
@given(size=st.floats(100.0, 1e30), at=st.integers(1, 150))
def test_a_spike_comes_back_to_the_ordinary_level(size: float, at: int) -> None:
    """One exploding norm, also at the second step, is scaled to the size of an ordinary one and touches no other; to a tenth of it where
    it would stay in the optimizer's second moments.
    """
    for step_size, left in ((0.1, 1.0), (None, 0.1)):
        policy, stream = Spike(), lognormal(200)
        decide_all(policy, stream[:at])
        decision = policy.decide(StepReading(size, step_size=step_size))
        assert 0.3 * left < size * decision.coefficient < 3.0 * left
        assert clipped(stream[at:], policy) == []


def test_the_first_step_is_held_by_the_parameters() -> None:
    """Before any history SGD's first step may be as long as the weights; one beyond comes back to a tenth of them."""
    policy = Spike()
    assert policy.wants_parameter_norm
    decision = policy.decide(StepReading(3.0e9, parameter_norm=50.0, step_size=1e-3))
    assert decision.threshold == pytest.approx(5e4)
    assert 3.0e9 * decision.coefficient == pytest.approx(5e3)
    assert policy.decide(StepReading(3.0e6, parameter_norm=50.0, step_size=1e-3)).coefficient * 3.0e6 == pytest.approx(
        5e3
    )
    assert policy.decide(StepReading(4.0, parameter_norm=50.0, step_size=1e-3)).coefficient == 1.0


def test_a_sum_as_the_loss_is_no_explosion() -> None:
    """Gradients a thousand times as large as the weights: the first is not known from an explosion, all others are ordinary under Adam."""
    stream = [1e4 * norm for norm in lognormal(200, spread=0.5)]
    policy = Spike()
    for step, norm in enumerate(stream):
        assert (policy.decide(StepReading(norm, parameter_norm=10.0)).coefficient == 1.0) is (step > 0)
    assert policy.decide(StepReading(1e7, parameter_norm=10.0)).coefficient < 1e-3


def test_a_first_norm_that_fits_the_loss_is_ordinary() -> None:
    """Under Adam a summed loss may begin with any norm; one that is out of all proportion to the loss is an explosion."""
    for scale in (1.0, 1e4, 1e8):
        assert Spike().decide(StepReading(3.0 * scale, parameter_norm=10.0, loss=5.0 * scale)).coefficient == 1.0
        assert Spike().decide(StepReading(3.0 * scale, parameter_norm=10.0, loss=-5.0 * scale)).coefficient == 1.0
    for loss in (5.0, 0.0, float("nan"), None):
        assert Spike().decide(StepReading(3e6, parameter_norm=10.0, loss=loss)).coefficient < 1e-5


def test_the_loss_is_no_excuse_where_the_length_is_known() -> None:
    """Under SGD a step longer than the parameters, and than a quadratic loss allows, is too long, however large the loss."""
    assert Spike().decide(StepReading(1e6, parameter_norm=10.0, step_size=0.1, loss=1e6)).coefficient < 1.0


@pytest.mark.parametrize("spread", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("rate", [0.01, 0.03, 0.1])
def test_weights_that_begin_near_zero_are_no_measure_of_a_step(spread: float, rate: float) -> None:
    """Linear regression by SGD from small weights: no step is clipped, and the loss falls as without a policy."""
    torch.manual_seed(0)
    x, truth = torch.randn(32, 2), torch.tensor([2.0, -3.4])
    weights, policy, losses = (spread * torch.randn(2)).requires_grad_(), Spike(), []
    for _ in range(200):
        loss = (x @ weights - x @ truth - 0.01 * torch.randn(32)).square().mean()
        (slope,) = torch.autograd.grad(loss, [weights])
        losses.append(loss.item())
        told = StepReading(slope.norm().item(), parameter_norm=weights.norm().item(), step_size=rate, loss=losses[-1])
        assert policy.decide(told).coefficient == 1.0
        weights = (weights - rate * slope).detach().requires_grad_()
    assert losses[-1] < losses[0] / 10


@given(st.integers(1, 6), st.floats(0.05, 1.0), st.floats(-3.0, 3.0), st.integers(0, 2**31))
def test_a_first_step_that_is_stable_for_a_quadratic_loss_is_left_alone(
    size: int, part: float, scale: float, seed: int
) -> None:
    """Of any curvature and scale, at each rate up to the largest that is stable, from weights of 0 on."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64) * 10**scale
    hessian, far = root @ root.T, torch.randn(size, generator=generator, dtype=torch.float64)
    slope, loss = hessian @ far, 0.5 * (far @ hessian @ far)
    rate = part * 2 / float(torch.linalg.eigvalsh(hessian)[-1]) * (1 - 1e-9)
    told = StepReading(float(slope.norm()), parameter_norm=1e-30, step_size=rate, loss=float(loss))
    assert Spike().decide(told).coefficient == 1.0


def test_a_first_step_that_explodes_is_not_remembered_for_long() -> None:
    """Under Adam it is brought to a tenth of the weights; soon what it was is forgotten, and large steps are shortened."""
    policy, stream = Spike(), lognormal(100)
    assert 1e4 * policy.decide(StepReading(1e4, parameter_norm=40.0)).coefficient == pytest.approx(4.0)
    assert clipped(stream, policy) == []
    assert clipped([100.0], policy) == [0]


def test_a_tiny_first_norm_does_not_pin_the_run() -> None:
    """Where the first gradient is next to nothing (an output layer of zeros), what follows is ordinary."""
    policy = Spike()
    for norm in (1e-9, 0.3, 0.4, 0.2, *lognormal(50)):
        assert policy.decide(StepReading(norm, parameter_norm=60.0)).coefficient == 1.0


def test_parameters_are_asked_for_only_at_first() -> None:
    """After twenty norms the policy speaks from its own history."""
    policy = Spike()
    decide_all(policy, [1.0] * 20)
    assert not policy.wants_parameter_norm


def test_an_absurd_first_norm_is_outvoted() -> None:
    """Without parameters the first norm is taken on trust, and forgotten when the others differ."""
    policy = Spike()
    decide_all(policy, [1e12, 1.0, 1.1, 0.9])
    assert policy.decide(StepReading(1e6)).coefficient == pytest.approx(1e-7, rel=0.2)


def test_a_run_that_keeps_exploding_is_held_for_ever() -> None:
    """Norms that grow without end are brought back to the first level, however long it lasts."""
    policy = Spike()
    decide_all(policy, lognormal(100))
    for step in range(2000):
        norm = min(1e3 * 1.1**step, 1e35)
        if step > 700:
            norm *= 10.0 ** (step % 7 - 3)  # held, but wild
        assert norm * policy.decide(StepReading(norm)).coefficient < 3.0


def test_a_run_that_keeps_exploding_takes_no_long_step() -> None:
    """Under SGD, whatever level it learns: a step is no longer than allowed, at each that explodes a shorter one."""
    policy = Spike()
    along(policy, lognormal(100, spread=0.1))
    taken = along(policy, [1e3 * 1.1 ** min(step, 600) for step in range(2000)])
    assert max(taken) <= 15.0
    assert max(taken[10:]) <= 15.0 / 128 * (1 + 1e-12)


def test_a_run_that_explodes_from_the_first_steps_is_held() -> None:
    """A tenfold growth each step from the second on never lets through more than ten first norms."""
    policy = Spike()
    taken = [n * policy.decide(StepReading(n, parameter_norm=10.0)).coefficient for n in (10.0**k for k in range(30))]
    assert max(taken) <= 10.0


def along(policy: Spike, stream: list[float], *, size: float = 50.0, rate: float = 1.0) -> list[float]:
    """The norms that SGD is let take, of parameters with a norm of ``size``."""
    asked = [
        policy.decide(StepReading(n, parameter_norm=size if policy.wants_parameter_norm else None, step_size=rate))
        for n in stream
    ]
    return [norm * decision.coefficient for norm, decision in zip(stream, asked, strict=True)]


def test_a_step_that_is_too_long_is_an_explosion_sooner() -> None:
    """Six medians pass where that moves the weights by a tenth, and not where by more than half; what is left is no longer than allowed."""
    for size, passes in ((50.0, True), (10.0, False)):
        policy = Spike()
        along(policy, lognormal(50, spread=0.05), size=size)
        (taken,) = along(policy, [6.0], size=size)
        assert (taken == 6.0) is passes
        assert passes or taken <= 1.1
    assert along(Spike(), [60.0], size=50.0) == pytest.approx([5.0])  # the first step may be as long as the weights
    assert along(Spike(), [40.0], size=50.0) == [40.0]


def test_only_a_step_along_the_gradient_has_a_length() -> None:
    """Without a step size (Adam) the parameters say nothing, after the first steps."""
    policy = Spike()
    for norm in [*lognormal(50), 9.0]:
        assert policy.decide(StepReading(norm, parameter_norm=1.0)).coefficient == 1.0
    assert not policy.wants_parameter_norm


def test_weights_that_begin_at_zero_may_grow() -> None:
    """A first layer of zeros takes steps as long as itself, of ordinary norms: none is clipped."""
    policy, weight = Spike(), 0.0
    for norm in lognormal(100, spread=0.2):
        size = weight if policy.wants_parameter_norm else None
        assert policy.decide(StepReading(norm, parameter_norm=size, step_size=0.5)).coefficient == 1.0
        weight += 0.5 * norm


def test_a_run_that_exploded_is_held_shorter() -> None:
    """Under Adam no step is over three medians for a thousand steps; then the run is trusted again."""
    policy = Spike()
    decide_all(policy, [1.0] * 50)
    decisions = decide_all(policy, [1e3, 5.0, 2.9, 1e5, 8.0])
    taken = [n * d.coefficient for n, d in zip((1e3, 5.0, 2.9, 1e5, 8.0), decisions, strict=True)]
    assert taken == pytest.approx([0.1, 3.0, 2.9, 0.1, 3.0])
    assert [d.reason[:4] for d in decisions] == ["Its ", "Step", "", "Its ", "Step"]
    decide_all(policy, [1.0] * 998)
    assert policy.decide(StepReading(5.0)).coefficient < 1.0
    assert policy.decide(StepReading(5.0)).coefficient == 1.0


def test_an_explosion_soon_after_another_halves_the_length_allowed() -> None:
    """From three tenths of the weights to half of that, and back after twenty steps without one; one by itself shortens nothing."""
    policy = Spike()
    along(policy, [1.0] * 50, size=10.0)
    assert along(policy, [1e6, 1.9], size=10.0) == pytest.approx([1.0, 1.9])
    assert along(policy, [1e6, 1.9], size=10.0) == pytest.approx([1.0, 1.5])
    along(policy, [0.9] * 20, size=10.0)
    assert along(policy, [1.9], size=10.0) == [1.9]


def test_a_run_that_explodes_at_each_step_still_moves() -> None:
    """From the third in a row on a step is as long as is allowed, in the end a 128th of three tenths of the weights."""
    policy = Spike()
    along(policy, [0.1] * 50)
    taken = along(policy, [1e6] * 100)
    assert taken == pytest.approx([0.1, 0.1, *(max(15.0 / 2**k, 15.0 / 128) for k in range(2, 100))])


def test_steps_that_are_all_too_long_are_shortened_further() -> None:
    """After explosions, twenty in a row beyond the length allowed halve it, though none is an explosion by itself."""
    policy = Spike()
    along(policy, [0.1] * 50, size=1.0)
    along(policy, [1e6] * 3, size=1.0)
    assert along(policy, [0.2] * 60, size=1.0) == pytest.approx([0.075] * 20 + [0.0375] * 20 + [0.01875] * 20)


def test_after_explosions_no_more_is_learned_than_was_let_through() -> None:
    """Norms that swing about a bound under SGD raise no level: they stay explosions, and the steps become ever shorter."""
    policy = Spike()
    along(policy, [0.1] * 50, size=1.0)
    stream = [50.0 if step % 3 == 0 else 0.29 for step in range(300)]
    taken = along(policy, stream, size=1.0)
    assert max(taken[200:]) <= 0.3 / 64


def test_instability_cannot_raise_the_bound() -> None:
    """Large norms between steps that are too long leave the ordinary one where it was."""
    policy = Spike()
    along(policy, [1.0] * 50)
    for _ in range(300):
        along(policy, [25.0, 1e9, 28.0, 1e5])
    (taken,) = along(policy, [1e9])
    assert taken <= 1.0


def test_momentum_counts_in_the_length() -> None:
    """A step that momentum makes ten times as long is too long where the same without it is not."""
    for momentum, passes in ((0.0, True), (0.9, False)):
        policy = Spike()
        more = {"parameter_norm": 50.0, "step_size": 1.0, "momentum": momentum}
        for norm in [0.5] * 30:
            assert policy.decide(StepReading(norm, **more)).coefficient == 1.0
        assert (policy.decide(StepReading(5.0, **more)).coefficient == 1.0) is passes


@pytest.mark.parametrize("size", [40.0, 100.0, 250.0])
def test_a_norm_that_the_loss_explains_is_ordinary(size: float) -> None:
    """A rare class, a weight, a sum: the loss and the norm are as many times as large. The same norm by itself explodes."""
    for sign, explained in ((1.0, True), (-1.0, True), (1.0, False)):
        policy = Spike()
        for norm in lognormal(60, spread=0.1):
            policy.decide(StepReading(norm, loss=sign * 2.0))
        decision = policy.decide(StepReading(size, loss=sign * (2.0 * size if explained else 2.0)))
        assert (decision.coefficient == 1.0) is explained
        assert decision.reason.startswith("" if explained else "Its norm is out of the ordinary")


def test_a_loss_near_zero_excuses_nothing() -> None:
    """A loss of 0 has no size; one that falls and rises by a tenth explains no norm a hundred times as large."""
    for losses in ([0.0], [0.0, 1.0], [1.0, 1.1, 0.9], [math.nan]):
        policy = Spike()
        for step, norm in enumerate(lognormal(60, spread=0.1)):
            policy.decide(StepReading(norm, loss=losses[step % len(losses)]))
        assert policy.decide(StepReading(100.0, loss=losses[-1])).coefficient < 0.01


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e6, 1e-6])
@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_a_loss_of_another_scale_is_clipped_three_times_at_most(scale: float, spread: float) -> None:
    """Switched in mid-run, the norms go with the loss; norms that do without are held for longer."""
    for explained in (True, False):
        policy = Spike()
        for norm in lognormal(60, spread=spread):
            policy.decide(StepReading(norm, loss=1.0))
        loss = scale if explained else 1.0
        stream = [scale * norm for norm in lognormal(300, spread=spread, seed=1)]
        found = [policy.decide(StepReading(norm, loss=loss)) for norm in stream]
        clipped = sum(decision.coefficient < 1 for decision in found)
        assert clipped == 0 if scale in (30.0, 1e-6) and explained else clipped <= 3 or not explained
        assert clipped > 3 or explained or scale < 1.0
        assert all(decision.reason.endswith("so is its loss.") for decision in found if decision.reason and explained)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("every", [50, 100])
def test_corrupted_targets_are_held_each_time(size: float, every: int) -> None:
    """A target that is a million times too large makes loss and gradient so: not even Adam is to take that whole, however often."""
    policy = Spike()
    for step, norm in enumerate(lognormal(1200, spread=0.3)):
        corrupted = step % every == every - 1
        factor = size if corrupted else 1.0
        decision = policy.decide(StepReading(factor * norm, loss=factor * factor))
        assert (decision.coefficient == 1.0) is not corrupted
        assert factor * norm * decision.coefficient < 10.0


@pytest.mark.parametrize("seed", range(3))
def test_heavy_tails_of_the_loss_are_ordinary(seed: int) -> None:
    """Weights that are lognormal with σ = 1.5, or Pareto with a tail index of 2, from the first step on."""
    weights = lognormal(1000, spread=1.5, seed=seed)
    pareto = [max(1e-6, 1.0 - i / 1001) ** -0.5 for i in range(1000)]
    for tail in (weights, sorted(pareto, key=lambda w: math.sin(1e6 * w + seed))):
        policy = Spike()
        norms = [w * n for w, n in zip(tail, lognormal(1000, spread=0.3, seed=seed + 9), strict=True)]
        assert all(
            policy.decide(StepReading(norm, loss=weight)).coefficient == 1.0
            for norm, weight in zip(norms, tail, strict=True)
        )


def test_tasks_that_take_turns_are_ordinary_after_three() -> None:
    """Losses of 30 and 0.03 by turns, with gradients in proportion, from the first step on."""
    policy, clipped = Spike(), 0
    for step, norm in enumerate(lognormal(500)):
        scale = 30.0 if step % 2 else 0.03
        clipped += policy.decide(StepReading(scale * norm, loss=scale, parameter_norm=5.0)).coefficient < 1.0
    assert clipped <= 3


def test_growth_through_time_raises_no_level() -> None:
    """Under SGD norms that rise with the growth are held to ten ordinary ones for good; the same without it become ordinary."""
    for growth, step_size, held in ((100.0, 1e-6, True), (1.0, 1e-6, False), (None, 1e-6, False), (100.0, None, False)):
        policy = Spike()
        for norm in lognormal(60, spread=0.05):
            policy.decide(StepReading(norm, step_size=step_size, growth=growth and 1.0))
        climb = [min(1.02**i, 25.0) for i in range(1500)]
        decisions = [policy.decide(StepReading(norm, step_size=step_size, growth=growth)) for norm in climb]
        taken = [norm * decision.coefficient for norm, decision in zip(climb, decisions, strict=True)]
        assert (max(taken) < 12.0) is held
        assert taken[:100] == climb[:100]
        assert decisions[-1].reason.startswith("It grew through time") is held


def test_growth_that_rises_with_a_loss_of_another_scale_leaves_it_alone() -> None:
    """A loss times a thousand while the gradient grows through time: what is allowed rises with it."""
    policy = Spike()
    for growth in [1.0] * 40 + [100.0] * 40:
        policy.decide(StepReading(1.0, step_size=1e-9, loss=1.0, growth=growth))
    for _ in range(20):
        assert policy.decide(StepReading(1e3, step_size=1e-9, loss=1e3, growth=100.0)).coefficient == 1.0


@pytest.mark.parametrize("loss", [None, 3.0])
def test_an_older_state_is_taken_up(loss: float | None) -> None:
    """Checkpoints of 0.1.0, and of what knew what the loss sends, still hold the level."""
    policy = Spike()
    decide_all(policy, [2.0] * 40)
    state = policy.state_dict()
    oldest = {key: state[key] for key in ("history", "memory", "wary", "size", "age")} | {"held": [1.0]}
    length = {"share": 0.5, "in_row": 2, "calm": 3, "since": 20}
    later = {**oldest, "causes": [1.0] * 20, "growth": state["growth"], "length": length}
    for old in ({**oldest, "shaken": 0, "allowed": 1.0}, later):
        again = Spike()
        again.load_state_dict(old)
        assert again.decide(StepReading(1e6, loss=loss)) == policy.decide(StepReading(1e6))
        policy.load_state_dict(state)
        assert again.decide(StepReading(2.0, loss=loss)).coefficient == 1.0


def test_what_comes_up_again_and_again_is_part_of_the_run() -> None:
    """A rare class has a large gradient each time that it comes up: no explosion, however small the others have become."""
    policy = Spike()
    norms = [n * max(0.97**i, 1e-4) * (i % 150 != 149) + (i % 150 == 149) for i, n in enumerate(lognormal(3000))]
    assert sorted(norms)[-10] > 0.9
    assert clipped(norms, policy) == []
    assert clipped([100.0], policy) == [0]


def test_a_step_of_length_zero_does_not_put_the_guard_out_of_action() -> None:
    """Where a schedule begins with a rate of 0, or goes through it, a step that is too long is held all the same."""
    policy = Spike()
    along(policy, [1.0] * 50, size=10.0, rate=0.0)
    along(policy, [1.0] * 20, size=10.0)
    assert along(policy, [25.0], size=10.0) == [1.0]


@given(
    longest_step=st.floats(0.01, 100.0),
    norms=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40),
    size=st.floats(1e-3, 1e3),
    rate=st.floats(0.0, 1e3),
)
def test_no_step_is_lengthened(longest_step: float, norms: list[float], size: float, rate: float) -> None:
    """Whatever the arguments and the rate."""
    taken = along(Spike(longest_step=longest_step), norms, size=size, rate=rate)
    assert all(after <= before for after, before in zip(taken, norms, strict=True))


def test_a_climb_out_of_a_plateau_is_not_clipped() -> None:
    """Each norm twice the one before, from 1 to 80, is no leap; the same at once is an explosion."""
    climb = [2.0**i for i in range(1, 7)]
    assert clipped([1.0] * 50 + [*climb, 80.0]) == []
    assert clipped([1.0] * 50 + [80.0]) == [50]


def test_a_run_that_breaks_through_is_not_clipped() -> None:
    """After a plateau norms of a hundred times its level, between ordinary ones, are what learning looks like."""
    plateau = [0.3 * n for n in lognormal(100)]
    rise = [0.3 * 1.3**i * n for i, n in enumerate(lognormal(12, seed=1))]
    wild = [3.0 * n for n in lognormal(200, spread=1.2, seed=2)]
    assert max(wild) > 50.0
    assert clipped([*plateau, *rise, *wild]) == []


def test_a_new_level_is_accepted_in_steps() -> None:
    """A permanent, steady jump by 200 is clipped for a while, and then ordinary for good."""
    policy = Spike()
    decide_all(policy, lognormal(100))
    steps = clipped([200 * n for n in lognormal(300, seed=1)], policy)
    assert len(steps) >= 20
    assert max(steps) < 120


@pytest.mark.parametrize("spread", [0.5, 0.7])
def test_a_new_level_is_accepted_though_norms_scatter(spread: float) -> None:
    """A permanent jump by 300 of norms that vary by factors: ordinary after some hundred steps at most."""
    policy = Spike()
    decide_all(policy, lognormal(300, spread=spread))
    steps = clipped([300 * n for n in lognormal(3000, spread=spread, seed=1)], policy)
    assert len(steps) < 300


def test_a_plateau_that_still_rises_is_no_new_level() -> None:
    """A row of clipped norms that climbs by 5 % a step stays held."""
    policy = Spike()
    decide_all(policy, [1.0] * 100)
    assert len(clipped([100 * 1.05**i for i in range(200)], policy)) == 200


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"factor": 1.0}, "`factor` must be finite and > 1; found 1.0"),
        ({"factor": math.inf}, "`factor` must be finite"),
        ({"window": 5}, "`window` must be ≥ 20; found 5"),
        ({"memory": 10}, "`memory` must be ≥ 20; found 10"),
        ({"longest_step": 0.0}, "`longest_step` must be > 0; found 0.0"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict[str, float], match: str) -> None:
    """Each error names the argument, the rule and what was found."""
    with pytest.raises(ValueError, match=match):
        Spike(**arguments)  # type: ignore[arg-type]
