"""What a notebook shows of a callback and of a run, and the verdicts that a script asks for."""

from __future__ import annotations

import pytest

from lightning_gradwatch import GradWatch, load_run
from lightning_gradwatch.runlog.summary import summarise
from tests.models import TinyLanguageModel, sentences, trainer
from tests.runlogs import write_run
from tests.steering import STEERING_NAMES, steering


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN_TANH"])
def test_verdicts_are_those_of_the_run_log(tmp_path, cell) -> None:
    """While it trains there are those so far; after it, the ones that the run log amounts to."""
    seen: list[int] = []
    watch = GradWatch(every_n_steps=1, dirpath=tmp_path / "run", summary=False)
    assert watch.verdicts == []
    assert "0 verdicts, 0 events, no run log" in repr(watch)

    class Ask(TinyLanguageModel):
        def on_train_batch_end(self, *_) -> None:
            seen.append(len(watch.verdicts))

    trainer(tmp_path, [watch]).fit(Ask(cell, layers=2), sentences())
    run = load_run(tmp_path / "run")
    assert watch.verdicts == summarise(run.profile_records, run.event_records)
    assert [one.place for one in watch.verdicts] == ["rnn, layer 0", "rnn, layer 1"]
    assert seen[-1] == 2
    for shown in (watch._repr_html_(), run._repr_html_()):
        assert all(one.sentence.split("%")[0] in shown for one in watch.verdicts)
    assert f"2 verdicts, {len(watch.events)} event" in repr(watch)
    assert repr(run).startswith(f"<Run {str(tmp_path / 'run')!r}: ")


@pytest.mark.parametrize("name", ["<script>x</script>", "\"'<b>", *STEERING_NAMES[:3]])
def test_names_are_no_markup(tmp_path, name) -> None:
    """They are shown as they are called, and nothing else."""
    shown = load_run(write_run(tmp_path, module=name, steps=40))._repr_html_()
    assert "<script" not in shown
    assert "<b>" not in shown.replace("<b>" + tmp_path.name + "</b>", "")
    assert steering(shown) == set()
