"""What to do about the events of a run: each piece of advice once, and for whom it is meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_gradwatch.events import Severity

Record = Mapping[str, Any]
RANKS: dict[str, int] = {Severity.CRITICAL: 0, Severity.WARNING: 1, Severity.INFO: 2}
"""The gravest severity first; of a later version's, last."""

_MOST_PLACES = 6


def remedies(events: Iterable[Record]) -> dict[str, dict[str, list[str]]]:
    """Kind → remedy → the places that it is meant for; the gravest kinds first.

    The same kind may call for different things: a vanilla RNN whose gradient vanishes needs another
    cell, an LSTM another bias. Of one kind and place what its gravest events advise: against
    clipping that has become the rule "nothing to do" would contradict it.
    """
    by_kind: dict[str, dict[str, dict[str, None]]] = {}
    gravest: dict[str, int] = {}
    every = list(events)
    at: dict[tuple[str, str], int] = {}
    for event in every:
        key = (event["kind"], _place(event))
        at[key] = min(at.get(key, 9), _rank(event))
    for event in every:
        kind, remedy = event["kind"], event.get("remedy")
        if remedy:
            by_kind.setdefault(kind, {})
        if remedy and _rank(event) == at[kind, _place(event)]:
            by_kind.setdefault(kind, {}).setdefault(remedy, {})[_place(event)] = None
            gravest[kind] = min(gravest.get(kind, 9), _rank(event))
    kinds = sorted(by_kind, key=gravest.__getitem__)
    return {kind: {remedy: list(places) for remedy, places in by_kind[kind].items()} for kind in kinds}


def some(names: list[str]) -> str:
    """``a, b and c``, or the first few and how many more."""
    shown = (
        names if len(names) <= _MOST_PLACES else [*names[: _MOST_PLACES - 1], f"{len(names) - _MOST_PLACES + 1} more"]
    )
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _rank(event: Record) -> int:
    return RANKS.get(event.get("severity") or "", 3)


def _place(event: Record) -> str:
    if event.get("module") is None:
        return "the model"
    layer = "" if event.get("layer") is None else f", layer {event['layer']}"
    return f"{event['module']}{layer}{' (reverse)' if event.get('direction') == 'reverse' else ''}"
