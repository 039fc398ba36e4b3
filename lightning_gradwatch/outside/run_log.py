"""The one run log that whatever watches or clips in a loop writes together, by its folder."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from lightning_gradwatch.findings.folder import FOLDER, Offer, begin_log, end_log, key_of, not_writable, offer_of
from lightning_gradwatch.outside.processes import hear, is_alone, rank, tell
from lightning_gradwatch.plain import warn
from lightning_gradwatch.runlog.writer import RunLogWriter

_open: dict[str, tuple[RunLogWriter, list[object]]] = {}

_numbers = count()


def open_run_log(dirpath: str | Path | None, owner: object) -> RunLogWriter | None:
    """The writer to a new folder, or the one that is open under this name.

    Args:
        dirpath: where; None is ``gradwatch`` in the current folder.
        owner: the log is closed when its last owner closes it.

    Returns:
        The writer, or None where nothing can be written, which a warning says.

    Raises:
        ValueError: a folder that was asked for by name cannot be written.
    """
    base = Path(FOLDER if dirpath is None else dirpath).absolute()
    key = str(key_of(base))
    held = _open.get(key)
    if held is not None:
        held[1].append(owner)
        return held[0]
    offer = _offer(base)
    if offer.problem is not None:
        message = not_writable(base, offer.problem)
        if dirpath is not None:
            raise ValueError(message)
        warn(f"No run log is written: {message}", stacklevel=3)
    if offer.folder is None or offer.run_id is None:
        return None
    writer = begin_log(offer.folder, offer.run_id, rank=rank())
    _open[key] = (writer, [owner])
    return writer


def close_run_log(owner: object) -> None:
    """Let go of the run log; the last owner closes its files. Calling it again does nothing."""
    for key, (writer, owners) in list(_open.items()):
        owners[:] = [other for other in owners if other is not owner]
        if not owners:
            end_log(writer)
            del _open[key]


def others(writer: RunLogWriter | None, owner: object) -> list[object]:
    """Who else writes into the same run log."""
    owned = [owners for held, owners in _open.values() if held is writer]
    return [other for owners in owned for other in owners if other is not owner]


def _offer(base: Path) -> Offer:
    """Rank 0 chooses the folder and tells the others. One that is told nothing writes nothing."""
    if is_alone():
        return offer_of(base)
    key = f"folder/{next(_numbers)}"
    if rank():
        folder, _, run_id = (hear(key) or "").partition("\n")
        return Offer(Path(folder) if run_id else None, None, run_id or None)
    offer = offer_of(base)
    tell(key, "" if offer.folder is None else f"{offer.folder.absolute()}\n{offer.run_id}")
    return offer
