"""A gradient scaler in search of its scale."""

from __future__ import annotations

from lightning_gradwatch.detect import ScaleSearch
from lightning_gradwatch.events import EventKind, Moment


class TestScaleSearch:
    located = Moment(5).event(EventKind.NONFINITE_HIDDEN_GRADIENT, module="rnn", layer=1, timestep=3)

    def test_a_search_that_ends_is_a_note_each_time(self) -> None:
        """Three overflows, a finite step, another overflow: two notes."""
        search = ScaleSearch()
        first = [search.overflowed(self.located, 2.0**k, Moment(0)) for k in (16, 15, 14)]
        search.ended()
        again = search.overflowed(self.located, 2.0**13, Moment(9))
        assert [event and event.severity for event in (*first, again)] == ["info", None, None, "info"]

    def test_one_that_does_not_end_is_an_alarm_with_the_place(self) -> None:
        """After as many overflows as a search can need it is a warning, once, and names where it begins."""
        search = ScaleSearch()
        found = [search.overflowed(self.located, 65536.0, Moment(step)) for step in range(40)]
        said = [event for event in found if event is not None]
        assert [(event.step, event.severity) for event in said] == [(0, "info"), (16, "warning")]
        assert (said[1].module, said[1].layer, said[1].timestep) == ("rnn", 1, 3)

    def test_a_scale_under_one_is_an_alarm_at_once(self) -> None:
        """Where gradients overflow though they are made smaller, no search helps."""
        event = ScaleSearch().overflowed(self.located, 0.5, Moment(0))
        assert event is not None
        assert event.severity == "warning"
