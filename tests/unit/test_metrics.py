"""The accumulators, as torchmetrics uses them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lightning_gradwatch.metrics import LaggedGradient, TotalGradient


def test_the_mean_of_curves_is_geometric() -> None:
    """Two curves of growth rates −0.1 and −0.3 have one of −0.2; a shorter curve counts as far as it reaches."""
    metric = LaggedGradient()
    lag = torch.arange(50, dtype=torch.float64)
    metric.update(torch.exp(-0.1 * lag))
    metric.update(torch.exp(-0.3 * lag))
    assert metric.growth_rate() == pytest.approx(-0.2)
    assert (metric.horizon().lag, metric.horizon().censored) == (24, False)
    metric.update(torch.ones(3))
    assert len(metric.compute()) == 50


def test_what_is_not_finite_is_left_out() -> None:
    """An infinite entry does not spoil the accumulated curve."""
    metric = LaggedGradient()
    metric.update(torch.tensor([1.0, 0.5]))
    metric.update(torch.tensor([1.0, torch.inf]))
    assert metric.compute().tolist() == pytest.approx([1.0, 0.5])


def test_total_gradient_has_mean_and_maximum() -> None:
    """By timestep, aligned at the first."""
    metric = TotalGradient()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
    metric.update(torch.tensor([3.0]), torch.tensor([4.0]))
    mean, largest = metric.compute()
    assert mean.tolist() == [2.0, 2.0]
    assert largest.tolist() == [4.0, 5.0]


@pytest.mark.parametrize("make", [LaggedGradient, TotalGradient])
def test_two_ranks_are_one(make) -> None:
    """States reduced over ranks as torchmetrics reduces them give what one metric over all samples gives."""
    samples = [torch.rand(5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(4)]
    arguments = [(s,) if make is LaggedGradient else (s, s * 2) for s in samples]
    whole, ranks = make(), (make(), make())
    for i, argument in enumerate(arguments):
        whole.update(*argument)
        ranks[i % 2].update(*argument)
    for name, reduce in whole._reductions.items():
        setattr(ranks[0], name, reduce(torch.stack([getattr(ranks[0], name), getattr(ranks[1], name)])))
    torch.testing.assert_close(ranks[0].compute(), whole.compute())


def test_states_survive_copies_and_reset() -> None:
    """deepcopy and pickle keep what was accumulated; reset forgets it."""
    metric = LaggedGradient(max_lag=4)
    metric.update(torch.tensor([1.0, 0.5, 0.25]))
    for copied in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert copied.compute().tolist() == metric.compute().tolist()
    metric.reset()
    assert len(metric.compute()) == 0
    assert metric.growth_rate() is None


def test_a_length_of_zero_is_refused() -> None:
    """`max_lag` must be at least 1."""
    with pytest.raises(ValueError, match="`max_lag` must be ≥ 1; found 0"):
        LaggedGradient(0)


def test_a_metric_draws_itself() -> None:
    """As in torchmetrics, ``plot`` gives figure and axes, on axes of one's own and of a value of one's own too."""
    figures = pytest.importorskip("matplotlib.figure")
    lagged, total = LaggedGradient(), TotalGradient()
    lagged.update(torch.tensor([1.0, 0.1, 0.001]))
    total.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
    figure, ax = lagged.plot()
    assert ax.figure is figure
    assert ax.get_lines()[0].get_ydata().tolist() == pytest.approx([1.0, 0.1, 0.001])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["lagged gradient", "1 %"]
    mine = figures.Figure().subplots()
    figure, ax = total.plot(ax=mine)
    assert ax is mine
    assert figure is mine.figure
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[1.0, 2.0], [1.0, 5.0]]
    assert (
        lagged.plot(torch.ones(4), ax=figures.Figure().subplots())[1].get_lines()[0].get_ydata().tolist() == [1.0] * 4
    )


def test_nothing_accumulated_can_be_drawn() -> None:
    """A metric that was never updated has an empty picture, no error."""
    ax = pytest.importorskip("matplotlib.figure").Figure().subplots()
    TotalGradient().plot(TotalGradient().compute(), ax=ax)
    assert [len(line.get_ydata()) for line in ax.get_lines()] == [0, 0]
