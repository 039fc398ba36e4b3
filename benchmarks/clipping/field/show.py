"""The comparison as a table for each problem, and as one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.clipping.field.results import Row


def table(name: str, compared: Sequence[Row]) -> list[str]:
    """Lines of Markdown; the figures of the best rule are bold."""
    winner = min(compared, key=lambda row: row.rank)
    lines = [f"\n**{name}**\n", "| rule | setting | lost | solved after | final figure (median) | steps clipped |"]
    lines.append("|---|---|---|---|---|---|")
    for row in compared:
        bold = "**" if row is winner else ""
        solved = ", ".join(map(str, row.solved)) or "–"
        lost = f"{sum(record.lost for record in row.records)} of {len(row.records)}"
        lines.append(
            f"| {row.family} | {row.setting or '–'} | {lost} | {solved} | {bold}{row.loss:.4g}{bold} | {row.clipped:.0%} |"
        )
    return lines


def slower(row: Row, compared: Sequence[Row]) -> float:
    """How far behind the best a rule ends on a problem, 0 to 1: the share of the way to the worst that lost no run."""
    figures = [other.loss for other in compared if other.lost == 0 and math.isfinite(other.loss)]
    if not figures or not math.isfinite(row.loss):
        return 1.0
    least, most = min(figures), max(figures)
    return min(1.0, max(0.0, (row.loss - least) / (most - least))) if most > least else 0.0


def picture(compared: Mapping[str, Sequence[Row]], path: Path) -> None:
    """One cell a rule and problem: red by the runs lost, else the darker the further behind the best."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names, families = list(compared), [row.family for row in next(iter(compared.values()))]
    figure, axes = plt.subplots(figsize=(2.8 + 0.45 * len(names), 1.8 + 0.36 * len(families)), layout="constrained")
    for x, name in enumerate(names):
        for y, row in enumerate(compared[name]):
            behind = slower(row, compared[name])
            colour = (
                (0.85, 0.2 + 0.5 * (1 - row.lost), 0.2) if row.lost else (1 - 0.55 * behind,) * 2 + (1 - 0.25 * behind,)
            )
            axes.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white"))
            said = (
                f"{row.lost:.0%}\nlost" if row.lost else "•" if row is min(compared[name], key=lambda r: r.rank) else ""
            )
            axes.text(x + 0.5, y + 0.5, said, ha="center", va="center", fontsize=6)
    axes.set(xlim=(0, len(names)), ylim=(len(families), 0))
    axes.set_xticks([x + 0.5 for x in range(len(names))], names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks([y + 0.5 for y in range(len(families))], families, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title("Who loses runs (red), and who ends behind the best (dark); • is the best", fontsize=9)
    figure.savefig(path)
    plt.close(figure)
