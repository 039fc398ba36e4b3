"""What a run's profiles and events amount to, per module, layer and
direction, as a verdict in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lightning_gradwatch.events import EventKind, closes_episode
from lightning_gradwatch.plain import count_of, shown_share
from lightning_gradwatch.runlog.evidence import Evidence
from lightning_gradwatch.runlog.measures import Record, is_finite, reach
from lightning_gradwatch.runlog.rules import judge, order_in_doubt
from lightning_gradwatch.runlog.trouble import earlier, is_unchanged, risen_loss
from lightning_gradwatch.runlog.verdict import LayerSummary, Verdict
from lightning_gradwatch.thresholds import LONGER_HELPS, NOTHING_LOST

__all__ = ["LayerSummary", "Verdict", "is_finite", "order_of_axes", "reach", "summarise"]

_Group = tuple[str, int, str]

_CALM = (Verdict.HEALTHY, Verdict.SHORTENED, Verdict.UNDECIDED)
"""Verdicts that name no trouble."""

_MANY_CHANNELS = 10
"""From so many on a tenth of them is a number of channels."""

_UNSEEN = {
    EventKind.NOT_OBSERVED: Verdict.NOT_OBSERVED,
    EventKind.NO_GRADIENT_THROUGH_TIME: Verdict.NO_GRADIENT_THROUGH_TIME,
}
"""The verdict on a module without a profile, by the event that says why."""


def summarise(profile_records: Iterable[Record], event_records: Iterable[Record]) -> list[LayerSummary]:
    """A verdict for each module, layer and direction that was profiled, and for
    each module that was not observed.
    """
    groups: dict[_Group, list[Record]] = {}
    for record in profile_records:
        groups.setdefault((record["module"], record["layer"], record["direction"]), []).append(record)
    everywhere = list(event_records)
    events: dict[str, list[Record]] = {}
    for event in everywhere:
        if event.get("module") is not None and not closes_episode(event):
            events.setdefault(event["module"], []).append(event)
    seen = list(dict.fromkeys(module for module, _, _ in groups))
    verdicts = [
        _summary(group, groups[group], events.get(group[0], []), everywhere)
        for group in sorted(groups, key=lambda group: (seen.index(group[0]), *group[1:]))
    ]
    for module, of_module in events.items():
        missed = [event for event in of_module if event["kind"] in _UNSEEN]
        if missed and module not in seen:
            verdicts.append(_unseen(module, missed[-1], len(of_module)))
    return verdicts


def _summary(
    group: _Group, records: Sequence[Record], events: Sequence[Record], everywhere: Sequence[Record]
) -> LayerSummary:
    module, layer, direction = group
    here = [
        event for event in events if event.get("layer") in (None, layer) and event.get("direction") in (None, direction)
    ]
    evidence = Evidence(records, here, everywhere)
    verdict, sentence = judge(evidence)
    said_before = earlier(evidence) if verdict in _CALM else ""
    said_of_loss = risen_loss(evidence) if verdict in _CALM else ""
    known = verdict is not Verdict.NO_GRADIENT_THROUGH_TIME and not (evidence.censored and evidence.horizon == 0)
    return LayerSummary(
        module=module,
        kind=evidence.last[-1].get("kind") or "",
        layer=layer,
        direction=direction,
        timesteps=evidence.timesteps,
        horizon=evidence.horizon if known else None,
        horizon_censored=known and evidence.censored,
        growth_rate=evidence.rate,
        exact=evidence.exact,
        samples=evidence.samples,
        events=len(here),
        verdict=verdict,
        sentence="".join(
            (
                sentence,
                said_before,
                said_of_loss,
                _channels(evidence),
                _sequences(evidence),
                _segments(evidence),
                _doubt(evidence),
            )
        ),
        starves=evidence.starves and not evidence.low,
        horizon_range=None if evidence.spread is None else str(evidence.spread),
        since=evidence.lost_since,
        troubled=bool(said_before),
        cut_share=evidence.cut_share if evidence.truncated else None,
        risen=bool(said_of_loss),
        unchanged=is_unchanged(evidence),
        inexact_reason=_reason(evidence),
    )


def _channels(evidence: Evidence) -> str:
    """How far the channels of a scan reach, each by itself: their distribution is its memory."""
    last = evidence.last[-1]
    reaches, count = last.get("channel_horizons"), last.get("channels")
    if not reaches or not count or count < _MANY_CHANNELS:
        return ""
    outlive = last.get("channels_censored") or 0
    if outlive >= count / 2:
        return f" Of its {count:,} channels {outlive:,} outlive the sequence."
    half, tenth = (reaches[math.ceil(share * len(reaches)) - 1] for share in (0.5, 0.9))
    best = f"{outlive:,} outlive the sequence" if outlive >= count / 10 else f"a tenth {tenth:,}"
    return f" Of its {count:,} channels half reach {half:,} timestep{'' if half == 1 else 's'} or more, {best}."


def _sequences(evidence: Evidence) -> str:
    """How many sequences of a batch get a gradient, where it is not all of them."""
    if evidence.with_gradient is None or evidence.with_gradient[0] >= evidence.with_gradient[1]:
        return ""
    some, batch = evidence.with_gradient
    said = f" Of the {batch:,} sequences of a batch {some:,} {'gets' if some == 1 else 'get'} a gradient."
    return said + (_order(evidence, batch) if order_in_doubt(evidence) else "")


def _order(evidence: Evidence, batch: int) -> str:
    """What it may be if one sequence alone gets a gradient."""
    return f" The module{order_of_axes(not evidence.time_first, evidence.timesteps, batch)}"


def order_of_axes(batch_first: bool, timesteps: int, batch: int) -> str:
    """How a module took the axes of its input, and what is wrong if they are swapped: the end of a
    sentence about it.
    """
    shape = f"{count_of(timesteps, 'timestep')} of {count_of(batch, 'sequence')}"
    swapped = "it is the other way round" if batch == timesteps else f"{batch:,} is the number of timesteps"
    wrong = "its input has time first" if batch_first else "batch_first=True was forgotten"
    return f" has batch_first={batch_first} and took its input for {shape}: if {swapped}, {wrong}."


def _segments(evidence: Evidence) -> str:
    """That the gradient ends where a segment begins, as in
    truncated backpropagation through time.
    """
    if not evidence.truncated or evidence.timesteps <= 1 or evidence.horizon is None:
        return ""
    length = count_of(evidence.timesteps, "timestep")
    if evidence.cut_share is not None:
        return _beyond_the_cut(evidence.cut_share, length)
    unknown = f" How much that cuts off cannot be measured: {evidence.cut_unknown}." if evidence.cut_unknown else ""
    leaf = " A gradient handed back by hand is in the totals alone." if evidence.handed_over else ""
    return (
        f" The state that comes in has no graph: if it is carried over, the gradient flows within segments of {length} "
        f"and is cut between them.{unknown}{leaf}"
    )


def _beyond_the_cut(share: float, length: str) -> str:
    """How much gradient lies in the segment before, had it not been cut off from this one."""
    said = (
        f" The state is carried over; the gradient flows within segments of {length} and is cut between them: had it "
        f"gone on into the segment before, {shown_share(share)} of the gradient over both would lie there."
    )
    if share >= LONGER_HELPS:
        return f"{said} Longer segments would keep more of it."
    return f"{said} Longer segments would add next to nothing to it now." if share < NOTHING_LOST else said


def _doubt(evidence: Evidence) -> str:
    """What the figures do not say: what lies beyond a call; that, and why, they are not exact."""
    apart = " Its state goes on from call to call; beyond a call nothing was followed." if _goes_on(evidence) else ""
    if evidence.exact or (
        evidence.horizon is None and evidence.unfollowed is not None
    ):  # then the sentence itself says why
        return apart
    reason = _reason(evidence)
    return apart + " The measurement is not exact" + (f": {reason}." if reason else ".")


def _goes_on(evidence: Evidence) -> bool:
    """Whether its calls continue one another and each was measured by itself; calls of one
    timestep have a sentence of their own.
    """
    return evidence.left_out and evidence.timesteps > 1


def _reason(evidence: Evidence) -> str:
    reasons = (record.get("inexact_reason") for record in reversed(evidence.last))
    return next((reason.rstrip(".") for reason in reasons if reason), "")


def _unseen(module: str, event: Record, events: int) -> LayerSummary:
    return LayerSummary(
        module=module,
        kind="",
        layer=None,
        direction=None,
        timesteps=0,
        horizon=None,
        horizon_censored=False,
        growth_rate=None,
        exact=True,
        samples=0,
        events=events,
        verdict=_UNSEEN[event["kind"]],
        sentence=(event.get("message") or "").removeprefix(f"{module} was not observed.").strip()
        or "It is not known why.",
    )
