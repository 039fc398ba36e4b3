"""torchmetrics that accumulate profiles over sampled steps, and over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_gradwatch import arguments
from lightning_gradwatch.profile import Floats, Horizon, gradient_horizon, growth_rate
from lightning_gradwatch.thresholds import FLOOR, HORIZON_RATIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LAG = 1024
"""Lags that an accumulated curve holds."""


class LaggedGradient(Metric):
    """The geometric mean over samples of the lagged gradient r_k ``(lag,)``, up to ``max_lag``.

    Args:
        max_lag: lags held; later ones are left out.

    Raises:
        ValueError: ``max_lag`` is no whole number of 1 or more.
    """

    is_differentiable = False
    full_state_update = False
    log_sum: Tensor
    count: Tensor

    def __init__(self, max_lag: int = MAX_LAG) -> None:
        super().__init__(sync_on_compute=True)
        max_lag = arguments.whole("max_lag", max_lag, f"The default is {MAX_LAG}.")
        self.add_state("log_sum", torch.zeros(max_lag + 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(max_lag + 1, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, lagged: Tensor) -> None:
        """Take in one curve ``(lag,)``; lags where it is not finite are left out, zeros count as
        the smallest ratio told apart.
        """
        curve = lagged[: len(self.count)].to(self.log_sum)
        usable = curve.isfinite()
        logs = torch.where(usable, curve.clamp_min(FLOOR).log(), 0.0)
        self.log_sum[: len(curve)] += logs
        self.count[: len(curve)] += usable

    def compute(self) -> Tensor:
        """The mean curve, as far as any sample reached."""
        reach = int((self.count > 0).int().cumprod(0).sum())
        return (self.log_sum[:reach] / self.count[:reach]).exp()

    def horizon(self) -> Horizon:
        """The gradient horizon of the mean curve, in timesteps."""
        return gradient_horizon(self._curve())

    def growth_rate(self) -> float | None:
        """The growth rate of the mean curve, in nats per timestep."""
        return growth_rate(self._curve())

    def _curve(self) -> Floats:
        """``(lag,)``: torchmetrics makes a scalar of a result with one entry."""
        return self.compute().cpu().numpy().reshape(-1)

    def plot(self, val: Tensor | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the curve over lag, with the 1 % line.

        Args:
            val: a result of ``compute``; None computes one.
            ax: where to draw; None makes a figure.

        Raises:
            ImportError: matplotlib is missing.
        """
        curve = self.compute() if val is None else val
        figure, ax = _draw({"lagged gradient": curve}, ax, "lag (timesteps back)", "gradient relative to lag 0")
        ax.axhline(HORIZON_RATIO, color="0.4", linestyle="--", linewidth=1, label="1 %")
        ax.legend(fontsize="small")
        return figure, ax


class TotalGradient(Metric):
    """Mean over samples and maximum of the total gradient's norm by timestep ``(time,)``,
    aligned at the first timestep.

    Args:
        max_timesteps: timesteps held; later ones are left out.
    """

    is_differentiable = False
    full_state_update = False
    sum: Tensor
    count: Tensor
    largest: Tensor

    def __init__(self, max_timesteps: int = MAX_LAG) -> None:
        super().__init__(sync_on_compute=True)
        self.add_state("sum", torch.zeros(max_timesteps, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(max_timesteps, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("largest", torch.zeros(max_timesteps, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, total: Tensor, total_max: Tensor) -> None:
        """Take in one sample: median and maximum over its sequences ``(time,)``;
        what is not finite is left out.
        """
        total, total_max = (t[: len(self.sum)].to(self.sum) for t in (total, total_max))
        usable = total.isfinite() & total_max.isfinite()
        length = len(total)
        self.sum[:length] += torch.where(usable, total, 0.0)
        self.count[:length] += usable
        self.largest[:length] = torch.maximum(self.largest[:length], torch.where(usable, total_max, 0.0))

    def compute(self) -> tuple[Tensor, Tensor]:
        """``(mean, maximum)`` by timestep, as far as any sample reached."""
        reach = int((self.count > 0).int().cumprod(0).sum())
        return self.sum[:reach] / self.count[:reach], self.largest[:reach]

    def plot(self, val: tuple[Tensor, Tensor] | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw mean and maximum over timesteps.

        Args:
            val: a result of ``compute``; None computes one.
            ax: where to draw; None makes a figure.

        Raises:
            ImportError: matplotlib is missing.
        """
        mean, largest = self.compute() if val is None else val
        figure, ax = _draw({"mean": mean, "maximum": largest}, ax, "timestep", "total gradient")
        ax.legend(fontsize="small")
        return figure, ax


def _draw(curves: Mapping[str, Tensor], ax: Any, across: str, up: str) -> tuple[Figure, Axes]:
    """Curves over their index, on a log scale; what it cannot show is left out."""
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "`plot` needs matplotlib, which is not installed. Install the extra: pip install 'lightning-gradwatch[report]'"
            ) from error
        ax = plt.subplots(layout="constrained")[1]
    for name, curve in curves.items():
        ax.plot(curve.detach().cpu().numpy().reshape(-1), label=name)  # torchmetrics makes a scalar of one entry
    ax.set_yscale("log", nonpositive="mask")
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    return ax.figure, ax
