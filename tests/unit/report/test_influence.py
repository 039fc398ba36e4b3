"""Influence is drawn as it was measured: by lag, and word by word."""

from __future__ import annotations

import matplotlib as mpl
import pytest

from lightning_gradwatch.report import plot_influence, plot_words
from lightning_gradwatch.report.figures.influence import shade_of
from tests.runlogs import profile

mpl.use("Agg")


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_the_curves_are_those_of_the_inputs(ax) -> None:
    """Profiles of states are passed over."""
    records = [
        profile(1),
        {**profile(1), "state": "x", "primary": False, "lagged": [1.0, 0.3, 0.2]},
    ]
    plot_influence(records, ax=ax)
    assert ax.get_lines()[0].get_ydata().tolist() == [1.0, 0.3, 0.2]
    assert ax.get_xlabel() == "inputs before the loss"


def test_without_influence_the_remedy_is_named(ax) -> None:
    """The run log must have been written with it."""
    with pytest.raises(ValueError, match=r"found none. Train with GradWatch\(influence=True\)"):
        plot_influence([profile(1)], ax=ax)


@pytest.mark.parametrize(
    ("value", "largest", "shade"),
    [(1.0, 1.0, 1.0), (0.1, 1.0, 0.5), (0.01, 1.0, 0.0), (1e-9, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)],
)
def test_shades_follow_the_logarithm(value: float, largest: float, shade: float) -> None:
    """From 1 % of the largest to the largest."""
    assert shade_of(value, largest) == pytest.approx(shade)


def test_every_word_stands_in_every_row(ax) -> None:
    """The strongest is darkest and written in white; one without a value has no box."""
    plot_words(["cats", "ate", "were"], {"a": [0.01, 1.0, None], "b": [1.0, 0.5, None]}, ax=ax)
    assert [text.get_text() for text in ax.texts] == ["a", "cats", "ate", "were", "b", "cats", "ate", "were"]
    shades = [patch.get_facecolor()[0] for patch in ax.patches]
    assert len(shades) == 4
    assert shades[0] == pytest.approx(1.0)
    assert shades[1] == min(shades)
    assert [text.get_color() for text in ax.texts][:4] == ["black", "k", "w", "k"]
