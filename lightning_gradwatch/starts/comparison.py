"""What the starts would give, in rows, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.report.extra import require
from lightning_gradwatch.starts.row import StartRow
from lightning_gradwatch.starts.table import table_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Comparison(Sequence[StartRow]):
    """The rows of all starts; printed, a table by layer.

    Args:
        missing: names of the recurrent modules of which nothing was measured.
    """

    def __init__(self, rows: Sequence[StartRow], missing: Sequence[str] = ()) -> None:
        self._rows = tuple(rows)
        self.missing = tuple(missing)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[StartRow]:
        return iter(self._rows)

    def __str__(self) -> str:
        return "\n".join(table_lines(self._rows, self.missing))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.starts)} starts, {len(self._rows)} rows>"

    @property
    def starts(self) -> list[str]:
        """Names of the starts, ``as it is`` first."""
        return list(dict.fromkeys(row.start for row in self._rows))

    @property
    def timesteps(self) -> dict[str, int]:
        """Module → timesteps of its longest sequence."""
        return {row.module: row.timesteps for row in self._rows}

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict a row, for JSON or a DataFrame; ``lagged`` is a list."""
        names = StartRow.__slots__
        return [
            {name: getattr(row, name) for name in names if name != "lagged"} | {"lagged": row.lagged.tolist()}
            for row in self._rows
        ]

    def plot(self, *, module: str | None = None, layer: int = 0, direction: str = "forward", ax: Axes | None = None):
        """The lagged gradient of each start for one layer. Needs the extra ``report``.

        Args:
            module: qualified name; the first one by default.
            ax: draw there; a new figure by default.

        Returns:
            the axes.

        Raises:
            ValueError: there is no such layer.
        """
        module = module if module is not None or not self._rows else self._rows[0].module
        rows = [row for row in self._rows if (row.module, row.layer, row.direction) == (module, layer, direction)]
        if not rows:
            places = "; ".join(dict.fromkeys(row.place for row in self._rows)) or "none"
            raise ValueError(f"`module`, `layer` and `direction` must name a measured layer; there are {places}.")
        require("matplotlib")
        from lightning_gradwatch.report.figures.starts import plot_curves

        curves = {row.start: row.lagged.tolist() for row in rows}
        return plot_curves(curves, rows[0].place, ax=ax)
