"""The verdict where not all that happens to a gradient can be seen."""

from __future__ import annotations

import pytest

from lightning_gradwatch.audit import ClipEvidence, Clippers, ClipSample, ClipVerdict, Counted, summarise_clipping

HOOK = "Net.on_before_optimizer_step"


def said(clippers: Clippers, *, bound: float = 10.0, traceless: bool = True, **fields):
    """What is said of gradients clipped to ``bound`` which nothing is known to have written to."""
    norms = enumerate((1.0, 2.0, 0.5, 3.0, 1.5) * 4)
    samples = [ClipSample(step, norm, min(norm, bound), traceless=traceless) for step, norm in norms]
    return summarise_clipping(ClipEvidence(0, clippers, samples, len(samples), **fields))


class TestSharded:
    """Of sharded gradients what writes to them and changes no number leaves no trace."""

    @pytest.mark.parametrize("surely", [(), (HOOK,)], ids=["perhaps", "surely"])
    def test_a_clip_call_in_the_code_is_left_open(self, surely: tuple[str, ...]) -> None:
        """It may act with a bound that is never reached; where writing leaves a trace it is known that it does not act."""
        who = Clippers(named=(HOOK,), surely=surely)
        found = said(who)
        assert found.verdict is ClipVerdict.UNDECIDED
        assert f"{HOOK} names a clipping function: of sharded gradients it cannot be told" in found.sentence
        whole = ClipVerdict.NO_EFFECT if surely else ClipVerdict.NONE
        assert said(who, traceless=False).verdict is whole

    def test_what_comes_before_the_backward_pass_has_no_effect(self) -> None:
        """The code itself says so."""
        found = said(
            Clippers(named=("Net.training_step",), surely=("Net.training_step",), early=("Net.training_step",))
        )
        assert found.verdict is ClipVerdict.NO_EFFECT
        assert "Net.training_step clips before the backward pass: on the 20 steps" in found.sentence

    @pytest.mark.parametrize(
        ("clippers", "verdict"),
        [
            (Clippers(), ClipVerdict.NONE),
            (Clippers(bound=10.0), ClipVerdict.NEVER_ACTED),
            (Clippers(bound=1.0, override="Net.configure_gradient_clipping"), ClipVerdict.NO_EFFECT),
        ],
        ids=["nobody", "a bound that is not reached", "a bound that is not used"],
    )
    def test_numbers_and_settings_are_enough_elsewhere(self, clippers: Clippers, verdict: ClipVerdict) -> None:
        """Where no code of the user's names a clipping function."""
        assert said(clippers).verdict is verdict

    @pytest.mark.parametrize(("bound", "verdict"), [(0.1, ClipVerdict.STEP_LIMITER), (2.5, ClipVerdict.SAFETY_NET)])
    def test_what_acts_is_seen(self, bound: float, verdict: ClipVerdict) -> None:
        """By its numbers."""
        assert said(Clippers(named=(HOOK,)), bound=bound).verdict is verdict


class TestProbes:
    """Where a closure makes several gradients in a step, the first is looked at."""

    def test_the_others_may_have_been_clipped(self) -> None:
        """That it never acted is not said; that it acted is."""
        assert said(Clippers(bound=10.0), traceless=False, probes=40).verdict is ClipVerdict.UNDECIDED
        assert said(Clippers(bound=0.1), bound=0.1, traceless=False, probes=40).verdict is ClipVerdict.STEP_LIMITER

    def test_the_sentence_says_which_were_looked_at(self) -> None:
        """And that the others may have been clipped."""
        sentence = said(Clippers(bound=10.0), traceless=False, probes=40).sentence
        assert "Of each of them only the first of several gradients was looked at" in sentence

    def test_where_all_are_counted_it_is_known(self) -> None:
        """By who clips itself."""
        counted = Counted(0, 60, each="gradient evaluation")
        who = Clippers(adaptive="AdaptiveClip (Norm)")
        assert said(who, traceless=False, probes=40, counted=counted).verdict is ClipVerdict.NEVER_ACTED


def test_a_setting_that_is_not_used_is_not_blamed_on_other_code() -> None:
    """A method that names a clipping function and may not run is not said to clip too early."""
    who = Clippers(bound=1.0, override="Net.configure_gradient_clipping", named=("Net.helper",))
    found = said(who, traceless=False)
    assert found.verdict is ClipVerdict.NO_EFFECT
    assert "gradient_clip_val=1 is set, but Net.configure_gradient_clipping" in found.sentence
    assert "take gradient_clip_val out" in found.remedy


@pytest.mark.parametrize(("named", "words"), [(("a",), "a names a"), (("a", "b"), "a and b name a")])
def test_one_names_and_two_name(named: tuple[str, ...], words: str) -> None:
    """The verb follows the number."""
    found = said(Clippers(named=named), traceless=False)
    assert f" {words} clipping function:" in found.sentence
