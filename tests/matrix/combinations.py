"""Which versions are run together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

UNIT = "tests/unit"
EXACT = "tests/integration/exact"
FITS = tuple(
    f"tests/integration/{name}"
    for name in ("neutral", "clean", "acting", "unobserved", "clipping", "located", "durable", "together", "portable")
)
"""What a Trainer's fit promises. Left out: ``shown``, which needs a browser and a terminal, and ``campaigns``, which train for
long to judge our own judgements."""


@dataclass(frozen=True)
class Combination:
    """One row of the table.

    Args:
        name: as it is asked for.
        python: the interpreter's version, as in ``3.11``.
        versions: distribution → release. Others are as pip chooses.
        tests: what is run.
        beside: distributions that are installed besides, as a release of these needs them.
    """

    name: str
    python: str
    versions: Mapping[str, str]
    tests: tuple[str, ...] = (UNIT, EXACT, *FITS)
    beside: tuple[str, ...] = field(default=())


def _versions(torch: str, lightning: str, torchmetrics: str, numpy: str, **others: str) -> dict[str, str]:
    both = {"lightning": lightning, "pytorch-lightning": lightning}
    named = {name.replace("_", "-"): version for name, version in others.items()}
    return {"torch": torch, **both, "torchmetrics": torchmetrics, "numpy": numpy, **named}


_OLD_LIGHTNING = ("setuptools<81",)  # Lightning before 2.4 imports pkg_resources, which later ones have not
_LOWEST_EXTRAS = {
    "lightning_utilities": "0.8.0",
    "pandas": "2.0.3",
    "plotly": "5.18.0",
    "matplotlib": "3.8.0",
    "rich": "13.7.0",
    "markdown_it_py": "3.0.0",
}
_PRESENT_EXTRAS = {"pandas": "3.0.6", "plotly": "7.1.0", "matplotlib": "3.11.2", "rich": "15.0.0"}

COMBINATIONS = (
    Combination(
        "lowest", "3.10", _versions("2.2.0", "2.1.1", "1.0.0", "1.26.0", **_LOWEST_EXTRAS), beside=_OLD_LIGHTNING
    ),
    Combination(
        "torch-2.4", "3.10", _versions("2.4.1", "2.2.5", "1.4.3", "1.26.4"), (UNIT, EXACT), beside=_OLD_LIGHTNING
    ),
    Combination("torch-2.6", "3.12", _versions("2.6.0", "2.4.0", "1.6.3", "2.0.2"), (UNIT, EXACT)),
    Combination("torch-2.9", "3.12", _versions("2.9.1", "2.5.5", "1.8.2", "2.3.5"), (UNIT, EXACT)),
    Combination(
        "lowest-lightning", "3.11", _versions("2.13.0", "2.1.1", "1.0.0", "2.4.6"), FITS, beside=_OLD_LIGHTNING
    ),
    Combination("lightning-2.4", "3.11", _versions("2.13.0", "2.4.0", "1.4.3", "2.4.6"), FITS),
    Combination("present", "3.11", _versions("2.13.0", "2.6.6", "1.9.0", "2.4.6", **_PRESENT_EXTRAS)),
    Combination("newest", "3.13", _versions("2.14.1", "2.6.6", "1.9.0", "2.4.6", **_PRESENT_EXTRAS)),
)
