"""A folder that cannot be written is told before training begins."""

from __future__ import annotations

import pytest

from lightning_gradwatch import AdaptiveClip, GradWatch
from tests.integration.watched import fit


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    """A `dirpath` in the way of a file is refused before training begins."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="`dirpath` must be a folder that can be written"):
        fit(tmp_path, None, [GradWatch(dirpath=tmp_path / "file" / "run")])


def test_a_default_folder_that_cannot_be_written(tmp_path) -> None:
    """Where the folder was not asked for by name, it is a warning, and the watching goes on without a log."""
    (tmp_path / "gradwatch").write_text("not a folder")
    with pytest.warns(UserWarning, match="No run log is written"):
        watch, _, run = fit(tmp_path, None, [GradWatch()])
    assert watch.run_dir is None
    assert watch.lagged
    assert run.global_step == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: [GradWatch(), AdaptiveClip()],
        lambda: [AdaptiveClip(), GradWatch()],
        lambda: [GradWatch(["rnn"]), GradWatch(["r*"])],
    ],
)
def test_callbacks_of_one_trainer_say_it_once(tmp_path, make) -> None:
    """Whichever comes first; each goes on without a log."""
    (tmp_path / "gradwatch").write_text("not a folder")
    callbacks = make()
    with pytest.warns(UserWarning, match="No run log is written") as said:
        fit(tmp_path, None, callbacks)
    assert sum("No run log is written" in str(one.message) for one in said) == 1
    assert [one.run_dir for one in callbacks] == [None, None]
