"""Figures for the loggers that take any: TensorBoard, W&B, MLflow; beside a CSV file, PNGs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.runlog.schema import is_primary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]


def log_figures(loggers: Iterable[Any], records: Sequence[Record], step: int) -> None:
    """Draw each gradient of a hidden state, by timestep and by lag, and hand the figure to every
    logger that takes one.

    Never an error: what a logger cannot take is left out in silence, as is everything where
    matplotlib is missing. Call it on rank 0 only. A figure takes some tenths of a second to draw.

    Args:
        loggers: the Trainer's.
        records: profile records; of each gradient the last is drawn by timestep, some of all by
            lag.
        step: under which the figures are logged.
    """
    _hand_out(loggers, _figures(records), step)


def log_clipping(loggers: Iterable[Any], records: Sequence[Record], step: int) -> None:
    """Draw the gradient norms and thresholds of AdaptiveClip's steps, and hand the figure out as
    :func:`log_figures` does.

    Args:
        loggers: the Trainer's.
        records: step records; each optimizer has its own figure.
        step: under which the figures are logged.
    """
    _hand_out(loggers, _clipping(records), step)


def _hand_out(loggers: Iterable[Any], figures: Iterable[tuple[str, Figure]], step: int) -> None:
    takers = [taker for logger in loggers if (taker := _taker(logger)) is not None]
    if not takers:
        return
    for key, figure in figures:
        for take in takers:
            try:
                take(key, figure, step)
            except Exception:  # a logger's own trouble: its figures are no reason to disturb a training
                continue


def _clipping(records: Sequence[Record]) -> Iterable[tuple[str, Figure]]:
    """``(gradwatch[/<optimizer>]/clipping, figure)`` for each optimizer."""
    from lightning_gradwatch.report.figures import plot_clipping

    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    optimizers = sorted({record["optimizer"] for record in records})
    for optimizer in optimizers:
        figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=100)
        try:
            plot_clipping(records, optimizer=optimizer, ax=figure.subplots())
        except (ValueError, TypeError, ArithmeticError):
            continue
        yield f"gradwatch/{f'{optimizer}/' if len(optimizers) > 1 else ''}clipping", figure


def _figures(records: Sequence[Record]) -> Iterable[tuple[str, Figure]]:
    """``(gradwatch/<module>/l<layer>[r]/gradient, figure)`` for each module, layer and
    direction."""
    from lightning_gradwatch.report import series
    from lightning_gradwatch.report.figures import plot_lag, plot_profile

    try:
        from matplotlib.figure import Figure  # outside pyplot: no window, no global state
    except ImportError:
        return
    for key, of_layer in series.group(records).items():
        if not is_primary(of_layer[0]):
            continue
        figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=100)
        by_timestep, by_lag = figure.subplots(1, 2)
        if of_layer[-1].get("exact") is False:
            reason = of_layer[-1].get("inexact_reason")
            figure.supxlabel(f"not exact{f': {reason}' if reason else ''}", fontsize="small", parse_math=False)
        try:
            plot_profile(of_layer, ax=by_timestep)
            plot_lag(of_layer, ax=by_lag)
        except (ValueError, TypeError, ArithmeticError):  # a record that no axes can hold
            continue
        yield f"gradwatch/{key.module}/l{key.layer}{'r' if key.direction == 'reverse' else ''}/gradient", figure


_Taker = Callable[[str, "Figure", int], None]


def _taker(logger: Any) -> _Taker | None:
    """How a logger takes a figure, told by what it can do and not by its class; None where it takes
    none."""
    try:
        if callable(getattr(logger, "log_image", None)):  # W&B
            return lambda key, figure, step: logger.log_image(key, [_pixels(figure)], step=step)
        experiment = logger.experiment
        if callable(getattr(experiment, "add_figure", None)):  # TensorBoard
            return lambda key, figure, step: experiment.add_figure(key, figure, global_step=step)
        if callable(getattr(experiment, "log_figure", None)) and isinstance(
            getattr(logger, "run_id", None), str
        ):  # MLflow
            return lambda key, figure, step: experiment.log_figure(
                logger.run_id, figure, f"{_file_name(key)}/step-{step:07d}.png", save_kwargs={"bbox_inches": None}
            )
        table = getattr(experiment, "metrics_file_path", None)
        if isinstance(table, str):  # CSV
            return lambda key, figure, step: _save(figure, Path(table).parent / "figures" / _file_name(key), step)
    except Exception:  # an experiment that cannot be opened fails where its scalars are logged, and says so there
        return None
    return None


def _pixels(figure: Figure) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    import numpy as np

    return np.asarray(canvas.buffer_rgba()).copy()


def _save(figure: Figure, folder: Path, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"step-{step:07d}.png")


def _file_name(key: str) -> str:
    """A key as a relative path that every file system and MLflow take."""
    parts = ("".join(c if c.isalnum() or c in "_-." else "_" for c in part) for part in key.split("/"))
    return "/".join(part.strip(".") or "_" for part in parts)
