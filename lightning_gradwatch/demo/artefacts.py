"""What a demo leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Artefacts:
    """What lies where: ``folder`` holds the run logs, ``picture`` is a PNG, ``report`` a page;
    ``sentence`` a PNG of the words that a verb's loss listens to, if that was measured.
    """

    folder: Path
    picture: Path
    report: Path
    sentence: Path | None = None
