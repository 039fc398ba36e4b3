"""The verdict on an optimizer's clipping, and its words, from samples that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch import EventKind, Moment
from lightning_gradwatch.audit import (
    ClipEvidence,
    Clippers,
    ClipSample,
    ClipVerdict,
    Counted,
    clipping_event,
    summarise_clipping,
)
from lightning_gradwatch.audit.rules import interval, judge_clipping

NORMS = (1.0, 2.0, 0.5, 3.0, 1.5)


def samples(bound: float, norms: tuple[float, ...] = NORMS * 4, *, touched: bool = True, **fields) -> list[ClipSample]:
    """As clipping to ``bound`` leaves them."""
    return [ClipSample(step, norm, min(norm, bound), touched, **fields) for step, norm in enumerate(norms)]


def evidence(found: list[ClipSample], **fields) -> ClipEvidence:
    """Of an optimizer whose every step was looked at."""
    return ClipEvidence(0, fields.pop("clippers", Clippers()), found, fields.pop("steps", len(found)), **fields)


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [(10.0, ClipVerdict.NEVER_ACTED), (2.5, ClipVerdict.SAFETY_NET), (0.1, ClipVerdict.STEP_LIMITER)],
)
def test_the_share_of_the_samples_decides(bound: float, verdict: ClipVerdict) -> None:
    """Where only they are known: a bound too high, about right, too low."""
    assert judge_clipping(evidence(samples(bound))) is verdict


@pytest.mark.parametrize(("hits", "number"), [(1, 1), (2, 2), (3, 3), (1, 2), (2, 4), (6, 10)])
def test_few_samples_leave_it_open(hits: int, number: int) -> None:
    """A share that might be on either side of one half is undecided, and the sentence says how many samples there are."""
    norms = (2.0,) * hits + (0.5,) * (number - hits)
    found = summarise_clipping(evidence(samples(1.0, norms), steps=400))
    assert found.verdict is ClipVerdict.UNDECIDED
    assert f"{hits} of the {number} steps looked at, of 400" in found.sentence or number == 1
    assert clipping_event(found, Moment(400), several=False) is None


def test_where_all_steps_are_known_they_count() -> None:
    """One sample, and the Trainer's bound: the norms of the other steps decide."""
    who = Clippers(bound=1.0)
    few = samples(1.0, (0.5,))
    net = evidence(few, clippers=who, steps=400, counted=Counted(3, 400, 7.0))
    assert judge_clipping(net) is ClipVerdict.SAFETY_NET
    assert "3 of 400 steps" in summarise_clipping(net).sentence
    limits = evidence(few, clippers=who, steps=400, counted=Counted(390, 400, 7.0))
    assert judge_clipping(limits) is ClipVerdict.STEP_LIMITER
    never = evidence(few, clippers=who, steps=400, counted=Counted(0, 400, 0.8))
    assert (
        "No gradient reached the bound of 1: the largest norm of all 400 steps is 0.8."
        in summarise_clipping(never).sentence
    )


@pytest.mark.parametrize("clipped", [0, 1, 250])
@pytest.mark.parametrize("skipped", [1, 30])
def test_steps_that_were_skipped_are_counted(clipped: int, skipped: int) -> None:
    """Who skips has acted, whether or not it clips too."""
    who = Clippers(adaptive="AdaptiveClip (Spike)")
    found = evidence(
        samples(math.inf, (0.5, 0.6)), clippers=who, steps=400, counted=Counted(clipped, 400, 7.0, skipped)
    )
    said = summarise_clipping(found)
    assert said.verdict is (ClipVerdict.STEP_LIMITER if clipped > 200 else ClipVerdict.SAFETY_NET)
    assert f"skipped {skipped}" in said.sentence
    assert ("clipped none" in said.sentence) == (clipped == 0)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60), st.sampled_from([0, 50, 90, 99, 100]))
def test_percentiles_are_numpys(norms: list[float], percent: int) -> None:
    """Interpolated linearly between neighbours."""
    found = evidence(samples(math.inf, tuple(norms)))
    assert found.percentile(percent) == pytest.approx(float(np.percentile(norms, percent)), rel=1e-9)


@given(st.integers(1, 200), st.data())
def test_the_interval_holds_the_share(number: int, data: st.DataObject) -> None:
    """It lies between 0 and 1, narrows with more samples, and is that of the other side turned round."""
    hits = data.draw(st.integers(0, number))
    low, high = interval(hits, number)
    assert -1e-12 <= low <= hits / number + 1e-12
    assert hits / number - 1e-12 <= high <= 1 + 1e-12
    assert interval(number - hits, number) == pytest.approx((1 - high, 1 - low))
    closer = interval(hits * 10, number * 10)
    assert closer[1] - closer[0] < high - low


def test_a_fixed_factor_is_no_clipping() -> None:
    """The same share at every norm; of a setting that clips it is said all the same."""
    found = [ClipSample(step, norm, norm / 4, touched=True) for step, norm in enumerate(NORMS)]
    assert judge_clipping(evidence(found)) is ClipVerdict.NONE
    assert "multiplied by 0.25" in summarise_clipping(evidence(found)).sentence


def test_a_gradient_that_grows_is_not_clipped() -> None:
    """Noise, say: some norm of a parameter grew."""
    found = [ClipSample(step, norm, norm * 0.99, touched=True, grown=True) for step, norm in enumerate(NORMS)]
    assert judge_clipping(evidence(found)) is ClipVerdict.NONE
    assert "some norms grew" in summarise_clipping(evidence(found)).sentence


@pytest.mark.parametrize(
    ("smaller", "grown", "verdict"),
    [
        (1, 32, ClipVerdict.NONE),
        (10, 10, ClipVerdict.NONE),
        (40, 5, ClipVerdict.STEP_LIMITER),
    ],
)
def test_what_makes_gradients_larger_too_is_no_clipping(smaller: int, grown: int, verdict: ClipVerdict) -> None:
    """Noise makes one smaller now and then. Where code of the user's names a clipping function, it may be both."""
    found = [ClipSample(step, 1.0 + step, (1.0 + step) * 1.1, touched=True, grown=True) for step in range(grown)]
    found += [ClipSample(grown + step, 1.0 + step, 0.9, touched=True) for step in range(smaller)]
    assert judge_clipping(evidence(found)) is verdict
    named = judge_clipping(evidence(found, clippers=Clippers(named=("Net.training_step",))))
    assert named in (ClipVerdict.SAFETY_NET, ClipVerdict.STEP_LIMITER, ClipVerdict.UNDECIDED)


@pytest.mark.parametrize("who", [Clippers(), Clippers(bound=1.0, override="Net.configure_gradient_clipping")], ids=str)
@pytest.mark.parametrize(("number", "steps"), [(16, 33), (1, 400), (70, 4000)])
def test_few_samples_do_not_say_that_it_never_acts(number: int, steps: int, who: Clippers) -> None:
    """What left the gradient alone on a few steps may act on others; on all of them, or on very many, it is said."""
    found = summarise_clipping(evidence(samples(9.0, (0.5, 0.7) * (number // 2) or (0.5,)), steps=steps, clippers=who))
    assert found.verdict is ClipVerdict.UNDECIDED
    assert "too few to tell whether it ever acts" in found.sentence
    for many, of in ((number, number), (80, 4000)):
        sure = samples(9.0, (0.5,) * many)
        assert judge_clipping(evidence(sure, steps=of, clippers=who)) is ClipVerdict.NEVER_ACTED


def test_a_name_in_the_code_alone_is_no_call() -> None:
    """It may be switched off: said, and no verdict of its own. Called come what may, it is one."""
    untouched = samples(math.inf, touched=False)
    named = summarise_clipping(evidence(untouched, clippers=Clippers(named=("Net.training_step",))))
    assert named.verdict is ClipVerdict.NONE
    assert "Net.training_step names a clipping function" in named.sentence
    sure = Clippers(named=("Net.training_step",), surely=("Net.training_step",))
    assert judge_clipping(evidence(untouched, clippers=sure)) is ClipVerdict.NO_EFFECT
    assert judge_clipping(evidence(untouched, clippers=sure, for_others=True)) is ClipVerdict.NONE


def test_what_wrote_to_the_gradient_was_called() -> None:
    """Then it has not reached its bound, whoever it is, though code of the user's names a clipping function."""
    sure = Clippers(named=("Net.training_step",), surely=("Net.training_step",))
    assert judge_clipping(evidence(samples(math.inf), clippers=sure)) is ClipVerdict.NEVER_ACTED


@pytest.mark.parametrize(
    ("bound", "kind", "value"),
    [(0.1, EventKind.CLIPPING_LIMITS_STEPS, 1.0), (10.0, None, None), (2.5, None, None)],
)
def test_only_what_wants_a_look_is_an_event(bound: float, kind: EventKind | None, value: float | None) -> None:
    """The sentence stands in the message, the remedy is the verdict's own."""
    found = summarise_clipping(evidence(samples(bound)))
    event = clipping_event(found, Moment(20), several=True)
    assert (event and event.kind) == kind
    if event is not None:
        assert (event.value, event.remedy) == (value, found.remedy)
        assert found.sentence in event.message
        assert event.message.endswith("Optimizer 0.")


@given(st.lists(st.floats(1e-8, 1e8), min_size=12, max_size=40))
def test_the_bound_that_is_advised_lets_what_was_seen_through(norms: list[float]) -> None:
    """It is rounded up, so that nine norms in ten of the samples are not cut."""
    found = summarise_clipping(evidence(samples(min(norms) / 10, tuple(norms))))
    if found.verdict is ClipVerdict.STEP_LIMITER:
        advised = float(found.remedy.partition("to about ")[2].partition(", ")[0])
        ordinary = float(np.percentile(norms, 90))
        assert ordinary * (1 - 1e-9) <= advised <= ordinary * 1.11


@pytest.mark.parametrize(("begun", "when"), [((3,), "from step 3 on"), ((3, 9, 17), "3 times since step 3")])
def test_a_run_that_goes_on_exploding_is_not_told_to_raise_its_bound(begun: tuple[int, ...], when: str) -> None:
    """A fixed bound stays; instead of AdaptiveClip Norm is named, at the 10th percentile of what the optimizer got."""
    found = samples(1.2, (*NORMS, 1.3) * 4)
    for clippers in (Clippers(bound=1.2), Clippers(), Clippers(bound=1.2, adaptive="AdaptiveClip (Spike)")):
        advice = summarise_clipping(
            evidence(found, clippers=clippers, counted=Counted(20, 24), explosions=begun)
        ).remedy
        assert f"(told {when})" in advice
        assert "Leave the bound where it is" in advice
    for loop in (False, True):
        clippers = Clippers(adaptive="AdaptiveClip (Spike)", in_loop=loop)
        advice = summarise_clipping(
            evidence(found, clippers=clippers, counted=Counted(20, 24), explosions=begun)
        ).remedy
        got = float(np.percentile([sample.after for sample in found], 10))
        called = "clip_adaptively(optimizer, " if loop else "AdaptiveClip("
        assert f"{called}policy=Norm(max_norm={got:.2g})): that is the 10th percentile" in advice
        assert "on the 24 steps looked at" in advice


def test_a_percentile_needs_several_norms() -> None:
    """With few of them the advice is what it is without explosions; of a safety net nothing is said."""
    few = samples(0.1)[:9]
    with_, without = (summarise_clipping(evidence(few, explosions=begun)).remedy for begun in ((3,), ()))
    assert with_ == without
    assert summarise_clipping(evidence(samples(2.5), explosions=(3,))).remedy == ""


def test_an_optimizer_that_was_not_looked_at_says_why() -> None:
    """No step, or backward passes that were not heard: undecided, with no figure."""
    found = summarise_clipping(evidence([], steps=30, unseen="its backward passes went past Lightning"))
    assert found.verdict is ClipVerdict.UNDECIDED
    assert found.sentence == "No optimizer step could be looked at: its backward passes went past Lightning."
    assert (found.share, found.median_coefficient, found.norm_percentiles) == (None, None, None)


def test_where_each_step_was_looked_at_the_share_is_known() -> None:
    """A third of 30 steps is a net, half of them too, and two thirds a limit; of 9 steps no share is a habit."""
    for hits, verdict in ((10, ClipVerdict.SAFETY_NET), (15, ClipVerdict.SAFETY_NET), (20, ClipVerdict.STEP_LIMITER)):
        found = samples(1.0, (2.0,) * hits + (0.5,) * (30 - hits))
        assert judge_clipping(evidence(found)) is verdict
        assert judge_clipping(evidence(found, steps=400)) in (verdict, ClipVerdict.UNDECIDED)
    assert judge_clipping(evidence(samples(1.0, (2.0,) * 4 + (0.5,) * 5))) is ClipVerdict.UNDECIDED


@pytest.mark.parametrize("factors", [(0.01, 0.02, 0.03), (0.1, 0.3, 0.2)])
def test_what_leaves_the_gradient_under_the_one_bound_is_no_clipping(factors: tuple[float, ...]) -> None:
    """A division by hand, as by a number of tokens, before a bound that is never reached."""
    found = [ClipSample(step, norm, norm * factors[step % 3], True) for step, norm in enumerate(NORMS * 4)]
    said = summarise_clipping(evidence(found, clippers=Clippers(bound=2.0), counted=Counted(12, 20, 3.0)))
    assert said.verdict is ClipVerdict.NONE
    largest = max(sample.after for sample in found)
    assert f"but not by gradient_clip_val=2: the largest norm that reached it there is {largest:.3g}." in said.sentence
    assert not said.remedy
    reached = [*found, ClipSample(20, 4.0, 2.0, True)]
    for other in (
        evidence(reached, clippers=Clippers(bound=2.0)),
        evidence(found, clippers=Clippers(bound=2.0, named=("f",))),
    ):
        assert judge_clipping(other) is not ClipVerdict.NONE


@pytest.mark.parametrize(
    ("clippers", "what"),
    [
        (Clippers(bound=0.1), "Raise gradient_clip_val to"),
        (
            Clippers(bound=100.0, override="Net.configure_gradient_clipping"),
            "Raise the bound in Net.configure_gradient_clipping to",
        ),
        (Clippers(bound=0.6, adaptive="AdaptiveClip (Norm)"), "Raise the bound to"),
        (Clippers(bound=1.0, named=("Net.f",)), "Raise the bound to"),
        (Clippers(), "Raise the bound to"),
    ],
)
def test_the_bound_that_is_to_be_raised_is_the_one_that_acts(clippers: Clippers, what: str) -> None:
    """The Trainer's only where that is the norm which the optimizer got."""
    assert summarise_clipping(evidence(samples(0.1), clippers=clippers)).remedy.startswith(what)


def test_a_part_that_is_clipped_does_not_set_the_length_of_the_steps() -> None:
    """Nor do several factors: the rest of the gradient has a say in it."""
    for fields in ({"part": 1.0}, {"uneven": True}):
        said = summarise_clipping(evidence(samples(0.4, **fields), clippers=Clippers(goes_along=True))).sentence
        assert "clipping is the rule, not the exception" in said
    whole = summarise_clipping(evidence(samples(0.4), clippers=Clippers(goes_along=True))).sentence
    assert "sets the length of the steps" in whole
