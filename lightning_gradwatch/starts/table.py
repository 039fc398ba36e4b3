"""A comparison of starts as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_gradwatch.starts.row import StartRow

HEADINGS = ("start", "horizon", "by gate bias", "growth rate", "∂L/∂W_hh", "loss")

CAUTION = (
    "Horizon: timesteps back to where the gradient of one timestep's loss is under 1 %. Growth rate: nats per "
    "timestep. By gate bias: the horizon if nothing but the keeping gate's bias acted.",
    "A longer horizon is no promise of learning. Where memory is long, small changes of the weights can matter much "
    "(arXiv 2405.21064): look at ∂L/∂W_hh, too, and try two starts.",
)


_MISSING = (
    "Nothing was measured in {names}: frozen, not used in the loss, called under no_grad(), or one step at a time with "
    "a detached state?"
)


def table_lines(rows: Sequence[StartRow], missing: Sequence[str] = ()) -> Iterator[str]:
    """A table for each layer and direction, what is missing, and how to read it."""
    if not rows:
        yield "No recurrent layer was measured."
        return
    for place in dict.fromkeys(row.place for row in rows):
        yield place
        yield from _table([row for row in rows if row.place == place])
        yield ""
    if missing:
        yield _MISSING.format(names=", ".join(missing))
    yield from CAUTION


def _table(rows: Sequence[StartRow]) -> Iterator[str]:
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    for line in cells:
        first, *others = (
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  " + "  ".join([first, *others])
    for row in rows:
        if row.inexact_reason is not None:
            yield f"  {row.start}: not exact, {row.inexact_reason}."


def _cells(row: StartRow) -> tuple[str, ...]:
    return (
        row.start,
        horizon_words(row),
        "" if row.predicted is None else str(row.predicted),
        "" if row.growth_rate is None else f"{row.growth_rate:+.3f}",
        "" if row.weight_gradient is None else f"{row.weight_gradient:.2g}",
        f"{row.loss:.4g}",
    )


def horizon_words(row: StartRow) -> str:
    """The horizon; ``≥`` where the gradient outlives the lags seen, a dash where there is none."""
    if row.horizon is None or (row.censored and not row.horizon):
        return "–"
    return f"≥ {row.horizon}" if row.censored else str(row.horizon)
