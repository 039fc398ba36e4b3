"""``GRADWATCH=1 python train.py`` adds GradWatch to any Lightning script, through
Lightning's callback entry points.

Lightning calls :func:`callbacks` whenever a Trainer is made. Unless the variable is set, nothing
but this module is imported, and nothing is added.

====================================  ====================================  =========
variable                              argument of ``GradWatch``             default
====================================  ====================================  =========
``GRADWATCH``                         ``1`` adds it; unset, empty or ``0`` does not  unset
``GRADWATCH_MODULES``                 ``modules``: name patterns, comma-separated    all
``GRADWATCH_EVERY_N_STEPS``           ``every_n_steps``                     50
``GRADWATCH_MAX_SEQUENCES``           ``max_sequences``; ``all`` for every one       8
``GRADWATCH_ANCHORS``                 ``anchors``                           4
``GRADWATCH_KEEP_SEQUENCES``          ``keep_sequences``: ``0`` or ``1``    0
``GRADWATCH_INFLUENCE``               ``influence``: ``0`` or ``1``         0
``GRADWATCH_DIRPATH``                 ``dirpath``                           the Trainer's
``GRADWATCH_SUMMARY``                 ``summary``: ``0`` or ``1``           1
``GRADWATCH_PROGRESS_BAR``            ``progress_bar``: ``0`` or ``1``      0
``GRADWATCH_FIGURES``                 ``figures``: ``0`` or ``1``           0
``GRADWATCH_ON_ANOMALY``              ``on_anomaly``: ``warn`` and so on    none
``GRADWATCH_BUNDLES``                 ``bundles``: how many               none
====================================  ====================================  =========

A script that has a GradWatch of its own keeps it, and none is added to it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from lightning_gradwatch.arguments import check, whole_text

if TYPE_CHECKING:
    from lightning_gradwatch.trainer.compat import Callback

SWITCH = "GRADWATCH"


def callbacks() -> list[Callback]:
    """The callbacks that the environment asks for: none, or one GradWatch.

    Raises:
        ValueError: a variable's value breaks its rule, or a variable of that name is
            not known; the message names it.
    """
    if not _is_on(os.environ):
        return []
    arguments = _arguments(os.environ)
    from lightning_gradwatch.callbacks.environment import GradWatchFromEnvironment

    return [GradWatchFromEnvironment(**arguments)]


def _is_on(environment: Mapping[str, str]) -> bool:
    return bool(environment.get(SWITCH)) and _switch(SWITCH, environment[SWITCH])


def _arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for variable, value in sorted(environment.items()):
        if not variable.startswith(f"{SWITCH}_"):
            continue
        argument = variable.removeprefix(f"{SWITCH}_").lower()
        if argument not in _READERS:
            known = [f"{SWITCH}_{name.upper()}" for name in _READERS]
            close = difflib.get_close_matches(variable, known, 1) or [", ".join(known)]
            raise ValueError(f"`{variable}` is no variable of GradWatch. Did you mean {close[0]}?")
        if value.strip():
            arguments[argument] = _READERS[argument](variable, value.strip())
    return arguments


def _count(variable: str, value: str) -> int:
    return _read_count(variable, value, "a whole number ≥ 1")


def _read_count(variable: str, value: str, rule: str) -> int:
    number = whole_text(value)
    check(number is not None, variable, rule, value, "Unset it for the default.")
    return cast("int", number)


def _count_or_all(variable: str, value: str) -> int | None:
    if value.lower() == "all":
        return None
    return _read_count(variable, value, "a whole number ≥ 1, or `all`")


def _switch(variable: str, value: str) -> bool:
    check(value.strip() in ("0", "1"), variable, "1 or 0", value, "Unset it for the default.")
    return value.strip() == "1"


def _patterns(_: str, value: str) -> str | list[str]:
    return "auto" if value == "auto" else [pattern.strip() for pattern in value.split(",") if pattern.strip()]


def _response(variable: str, value: str) -> str:
    known = (
        "warn",
        "skip",
        "stop",
        "raise",
        "rollback",
    )  # as GradWatch has them, which would cost the import of Lightning
    check(value in known, variable, f"one of {', '.join(known)}", value, "Unset it to observe only.")
    return value


def _text(_: str, value: str) -> str:
    return value


_READERS: dict[str, Callable[[str, str], Any]] = {
    "modules": _patterns,
    "every_n_steps": _count,
    "max_sequences": _count_or_all,
    "anchors": _count,
    "keep_sequences": _switch,
    "influence": _switch,
    "dirpath": _text,
    "summary": _switch,
    "progress_bar": _switch,
    "figures": _switch,
    "on_anomaly": _response,
    "bundles": _count,
}
