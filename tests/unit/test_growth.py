"""A growth rate in words."""

from __future__ import annotations

import pytest

from lightning_gradwatch.growth import growth_in_words


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (-1e308, "it fades, to under 1 % with each"),
        (-0.6931, "it fades, to 50 % with each"),
        (0.001, "it keeps its size"),
        (0.0953, "it grows, by 10 % with each"),
        (1.0986, "it grows, 3-fold with each"),
        (699.0, "it grows, 3.73e+303-fold with each"),
        (710.0, "it grows, over 1e300-fold with each"),
        (1e308, "it grows, over 1e300-fold with each"),
    ],
)
def test_every_rate_has_its_words(rate: float, words: str) -> None:
    """Also one that only a damaged run log holds."""
    assert growth_in_words(rate) == words
