"""What arguments are refused, wherever they are given: one error that names argument, rule, value and remedy."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from lightning_gradwatch import AGC, AGGC, AdaGC, AdaptiveClip, AutoClip, GradWatch, Norm, Spike, Value, ZClip
from lightning_gradwatch.cli import main
from lightning_gradwatch.detect import VanishingDetector
from lightning_gradwatch.metrics import LaggedGradient

COUNTS = [
    (GradWatch, "every_n_steps", 1),
    (GradWatch, "max_sequences", 1),
    (GradWatch, "anchors", 1),
    (GradWatch, "max_responses", 1),
    (GradWatch, "snapshot_every_n_steps", 1),
    (GradWatch, "bundles", 0),
    (GradWatch, "bundle_mib", 1),
    (AdaptiveClip, "max_successive_skips", 1),
    (Spike, "window", 20),
    (AutoClip, "window", 1),
    (ZClip, "warmup_steps", 1),
    (AdaGC, "warmup_steps", 1),
    (AGGC, "total_steps", 1),
    (VanishingDetector, "samples", 1),
    (LaggedGradient, "max_lag", 1),
]
NUMBERS = [
    (Norm, "max_norm"),
    (Value, "max_value"),
    (AGC, "clip_factor"),
    (AGC, "eps"),
    (AdaGC, "beta"),
    (AGGC, "high"),
    (AGGC, "max_up"),
    (Spike, "factor"),
    (AutoClip, "percentile"),
    (ZClip, "alpha"),
    (AdaptiveClip, "clip_through_time"),
    (AdaptiveClip, "omega"),
]


@pytest.mark.parametrize(("owner", "name", "least"), COUNTS)
@pytest.mark.parametrize(
    "value", [2.5, 30.0, "30", True, math.nan, math.inf, Fraction(61, 2), [30], b"30", np.float64(30)]
)
def test_a_count_is_a_whole_number(owner, name, least, value) -> None:
    """Whatever else it is, it is refused where it is given."""
    with pytest.raises(ValueError, match=re.escape(f"`{name}` must be a whole number ≥ {least}; found {value!r}. ")):
        owner(**{name: value})


@pytest.mark.parametrize(("owner", "name", "least"), COUNTS)
@pytest.mark.parametrize("below", [1, 7, 10**30])
def test_a_count_has_a_least(owner, name, least, below) -> None:
    """One that is smaller is refused; the least itself, and NumPy's integers, are taken."""
    with pytest.raises(ValueError, match=re.escape(f"`{name}` must be ≥ {least}; found {least - below}. ")):
        owner(**{name: least - below})
    for kind in (int, np.int64, np.uint8):
        owner(**{name: kind(least)})


@pytest.mark.parametrize(("owner", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["0.5", True, [0.5], 1j])
def test_a_number_is_no_text(owner, name, value) -> None:
    """Nor a truth value, nor a list: the error says so instead of one of Python's own."""
    with pytest.raises(ValueError, match=rf"`{name}` must be a number, .*; found {re.escape(repr(value))}\. \S"):
        owner(**{name: value})


@pytest.mark.parametrize(("owner", "name"), NUMBERS)
def test_nan_is_no_bound(owner, name) -> None:
    """It compares with nothing, so nothing would ever be clipped by it."""
    with pytest.raises(ValueError, match=rf"`{name}` must be .*; found nan\. \S"):
        owner(**{name: math.nan})


@pytest.mark.parametrize(
    ("owner", "name"), [(AdaptiveClip, "on_nonfinite"), (GradWatch, "on_anomaly"), (ZClip, "mode")]
)
@pytest.mark.parametrize("value", ["skp", 3, ["skip"], True, ""])
def test_a_word_is_one_of_those_there_are(owner, name, value) -> None:
    """The error lists them."""
    with pytest.raises(ValueError, match=rf"`{name}` must be one of .*; found {re.escape(repr(value))}\. \S"):
        owner(**{name: value})


@pytest.mark.parametrize("option", ["--steps", "--layers", "--hidden", "--timesteps", "--batch-size"])
@pytest.mark.parametrize("text", ["2.5", "three", "0", "-1", "1e3", "", "９", "1" * 5000])
def test_a_count_of_the_command_line_is_whole(capsys, option, text) -> None:
    """One line names the option, the rule and what was found."""
    assert main(["demo", "--text", __file__, f"{option}={text}"]) == 2
    said = capsys.readouterr().err
    assert f"argument {option}: must be a whole number ≥ 1; found {text!r}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_time_of_the_command_line_is_one_that_passes(capsys, text) -> None:
    """Seconds between two looks must be more than none and not for ever."""
    assert main(["watch", ".", f"--interval={text}"]) == 2
    assert f"--interval: must be a number of seconds > 0; found {text!r}" in capsys.readouterr().err
