"""Advice is given once, and to whom it is meant for."""

from __future__ import annotations

from lightning_gradwatch.events import Event, EventKind, Severity
from lightning_gradwatch.report.remedies import remedies, some

VANISHING = EventKind.VANISHING_HIDDEN_GRADIENT


def of(kind: EventKind, **fields) -> dict:
    return Event(kind, 1, value=1.0, threshold=1.0, **fields).to_record()


def test_one_kind_may_call_for_different_things():
    """Each remedy once, with the places that it is meant for."""
    events = [
        of(VANISHING, module="rnn", layer=0, remedy="another cell"),
        of(VANISHING, module="lstm", layer=1, direction="reverse", remedy="another bias"),
        of(VANISHING, module="rnn", layer=1, remedy="another cell"),
        of(VANISHING, module="rnn", layer=0, remedy="another cell"),
    ]
    assert remedies(events) == {
        VANISHING: {"another cell": ["rnn, layer 0", "rnn, layer 1"], "another bias": ["lstm, layer 1 (reverse)"]}
    }


def test_the_gravest_kind_comes_first():
    """However early a note was; a kind is as grave as its gravest event. What advises nothing is left out."""
    events = [
        of(EventKind.GRADIENT_CLIPPED),
        of(VANISHING, severity=Severity.INFO),
        of(EventKind.STEP_SKIPPED),
        of(EventKind.NONFINITE_LOSS),
        of(VANISHING, severity=Severity.CRITICAL),
        {"kind": "BARE", "step": 1},
    ]
    assert list(remedies(events)) == ["VANISHING_HIDDEN_GRADIENT", "NONFINITE_LOSS", "STEP_SKIPPED", "GRADIENT_CLIPPED"]


def test_what_a_graver_event_of_the_place_advises_replaces_a_note_s():
    """ "Nothing to do" beside "lower the rate" is no advice; of another place it stays."""
    events = [
        of(EventKind.GRADIENT_CLIPPED),
        of(EventKind.GRADIENT_CLIPPED, severity=Severity.WARNING, remedy="lower the rate"),
        of(VANISHING, module="a", severity=Severity.INFO, remedy="perhaps"),
        of(VANISHING, module="b", remedy="another bias"),
    ]
    assert remedies(events)[EventKind.GRADIENT_CLIPPED] == {"lower the rate": ["the model"]}
    assert remedies(events)[VANISHING] == {"perhaps": ["a"], "another bias": ["b"]}


def test_many_places_are_counted():
    """A few are named."""
    assert some(["a"]) == "a"
    assert some(["a", "b", "c"]) == "a, b and c"
    assert some([str(n) for n in range(9)]) == "0, 1, 2, 3, 4 and 4 more"
