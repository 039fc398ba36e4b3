"""Events say what happened, where, and what to do."""

from __future__ import annotations

import pytest

from lightning_gradwatch.events import Event, EventKind, Moment, Severity


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_has_a_message_and_a_remedy(kind: EventKind) -> None:
    """With all fields set the message names the place, and nothing in it is left to fill in."""
    event = Event(kind, 3, module="rnn", layer=1, direction="reverse", timestep=4, sequence=2, value=5.0, threshold=2.0)
    assert event.severity is kind.severity
    assert event.remedy
    assert "{" not in event.message
    if "{place}" in kind.message:
        assert "rnn, layer 1 (reverse), timestep 4, sequence 2" in event.message


def test_a_record_has_the_documented_fields() -> None:
    """One flat record; what does not apply is None."""
    record = Moment(7, 1, 2, 3).event(EventKind.NONFINITE_LOSS, value=float("inf")).to_record()
    assert list(record) == [
        "kind", "step", "epoch", "batch_idx", "rank", "module", "layer", "direction", "state", "timestep", "sequence", "parameter",
        "value", "threshold", "action", "severity", "message", "remedy",
    ]  # fmt: skip
    assert (record["kind"], record["step"], record["rank"], record["severity"]) == ("NONFINITE_LOSS", 7, 3, "critical")
    assert record["module"] is None


def test_a_maker_may_set_severity_and_add_a_detail() -> None:
    """Severity can be raised, and a sentence added to the message."""
    event = Event(EventKind.STEP_SKIPPED, 0, value=1.0, severity=Severity.CRITICAL, detail="It was the fifth.")
    assert event.severity == "critical"
    assert event.message.endswith("It was the fifth.")
