"""The progress bar shows horizon and clip coefficient if asked, and nobody else notices."""

from __future__ import annotations

import math

import pytest
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
from tests.models import TinyLanguageModel, sentences, trainer


class Noting(ProgressBar):
    """Draws nothing and keeps what it would draw after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict] = []

    def disable(self) -> None:
        """There is nothing to switch off."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.shown.append(dict(self.get_metrics(trainer, pl_module)))


def fit(tmp_path, bar, *, asked: bool, **options):
    callbacks = [GradWatch(every_n_steps=2, progress_bar=asked), AdaptiveClip("norm", progress_bar=asked), bar]
    quiet = {"enable_progress_bar": True, "log_every_n_steps": 1}
    fit = trainer(tmp_path, callbacks, **{**quiet, **options})
    fit.fit(TinyLanguageModel(layers=2), sentences(), sentences(seed=1))
    return fit, callbacks[0]


def test_it_shows_what_the_run_log_holds(tmp_path):
    """The shortest horizon of the last sampled step and the coefficient of the last step, across epochs and validation."""
    bar = Noting()
    _, watch = fit(tmp_path, bar, asked=True)
    run = load_run(watch.run_dir)
    for step, shown in enumerate(bar.shown):
        layers = [r for r in run.profile_records if r["step"] == step - step % 2 and r["state"] == "h"]
        assert len(layers) == 2
        shortest = min(layers, key=lambda r: (r["horizon_censored"], r["horizon"]))
        assert shown["horizon"] == f"{'≥' if shortest['horizon_censored'] else ''}{shortest['horizon']}/8"
        assert float(shown["clip"]) == pytest.approx(run.step_records[step]["clip_coefficient"], rel=1e-2)
    assert len(bar.shown) == 6


def test_unless_asked_it_shows_nothing_and_no_metric_is_added_either_way(tmp_path):
    """`callback_metrics`, from which checkpoints and early stopping choose, are the same with and without."""
    bars = Noting(), Noting()
    metrics = [set(fit(tmp_path / str(asked), bar, asked=asked)[0].callback_metrics) for asked, bar in enumerate(bars)]
    assert metrics[0] == metrics[1]
    assert not {"horizon", "clip"} & set(bars[0].shown[-1])
    assert {"horizon", "clip"} <= set(bars[1].shown[-1])


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_lightning_s_own_bars_draw_it(bar, tmp_path, capsys):
    """Both of Lightning's bars take texts."""
    fit(tmp_path, bar(refresh_rate=1), asked=True)
    said = capsys.readouterr()
    text = said.out + said.err
    if bar is TQDMProgressBar:  # a rich bar draws to terminals only
        assert "horizon=" in text
        assert "clip=1" in text


def test_a_skipped_step_says_so(tmp_path):
    """In place of a coefficient that was not applied."""
    bar = Noting()
    model = TinyLanguageModel(before_rnn=lambda x, batch: x * math.nan if batch == 1 else x)
    trainer(tmp_path, [AdaptiveClip(progress_bar=True), bar], max_steps=3, enable_progress_bar=True).fit(
        model, sentences()
    )
    assert [shown["clip"] for shown in bar.shown] == ["1", "skipped", "1"]
