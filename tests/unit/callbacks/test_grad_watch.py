"""What GradWatch refuses as an argument: the error names it, the rule, the value and the remedy."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lightning_gradwatch import GradWatch


@pytest.mark.parametrize("name", ["every_n_steps", "max_sequences", "anchors"])
def test_counts(name: str) -> None:
    """A count under 1 is refused."""
    with pytest.raises(ValueError, match=f"`{name}` must be ≥ 1; found 0"):
        GradWatch(**{name: 0})


@pytest.mark.parametrize("name", ["every_n_steps", "max_sequences", "anchors"])
@pytest.mark.parametrize("value", [2.5, 50.0, "50", math.nan])
def test_counts_are_whole(name: str, value: object) -> None:
    """What is no whole number is refused; NumPy's are some."""
    with pytest.raises(ValueError, match=re.escape(f"`{name}` must be a whole number ≥ 1; found {value!r}. ")):
        GradWatch(**{name: value})
    GradWatch(**{name: np.int64(3)})


def test_an_empty_list_of_modules() -> None:
    """It would watch nothing in silence."""
    with pytest.raises(ValueError, match=r'`modules` must name at least one pattern; found \[\]\. Use modules="auto"'):
        GradWatch(modules=[])


def test_modules_must_be_a_list() -> None:
    """A bare pattern is refused with the list to write instead."""
    with pytest.raises(ValueError, match=re.escape("Use modules=['rnn']")):
        GradWatch(modules="rnn")
