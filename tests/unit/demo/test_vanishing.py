"""What counts as the longest reach of a run's gradient."""

from __future__ import annotations

from lightning_gradwatch.demo.vanishing import Reach, longest_reach


def _records(*samples: tuple[int | None, bool]) -> list[dict[str, object]]:
    return [
        {"horizon": horizon, "horizon_censored": censored, "step": 10 * place}
        for place, (horizon, censored) in enumerate(samples)
    ]


def test_the_longest_horizon_is_found_with_its_step() -> None:
    """Samples without a horizon are passed over, and the first of several equal ones counts."""
    assert longest_reach(_records((3, False), (None, False), (9, False), (9, False))) == Reach(9, False, 20)


def test_a_horizon_that_the_window_cut_off_counts_as_longest() -> None:
    """It was at least that long, so that a shorter number may stand for more."""
    assert longest_reach(_records((9, False), (7, True))) == Reach(7, True, 10)


def test_without_any_horizon_nothing_was_reached() -> None:
    """A run whose loss sent no gradient reaches 0 words."""
    assert longest_reach(_records((None, False))) == Reach(0, False, 0)
