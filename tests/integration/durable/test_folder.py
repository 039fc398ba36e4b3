"""One training has one folder; one that cannot be written is told before training begins."""

from __future__ import annotations

import pytest

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
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


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: [GradWatch(dirpath=folder), AdaptiveClip()],
        lambda folder: [AdaptiveClip(), GradWatch(dirpath=folder)],
        lambda folder: [GradWatch(), AdaptiveClip(dirpath=folder)],
        lambda folder: [AdaptiveClip(dirpath=str(folder)), GradWatch()],
    ],
)
def test_one_training_is_one_run(tmp_path, make) -> None:
    """A callback that names no folder writes into the one that the other names, whichever comes first."""
    callbacks = make(tmp_path / "run")
    fit(tmp_path, None, callbacks)
    assert [one.run_dir for one in callbacks] == [tmp_path / "run"] * 2
    run = load_run(tmp_path / "run")
    assert run.profile_records
    assert len(run.step_records) == 6
    assert not (tmp_path / "gradwatch").exists()


def test_two_folders_that_are_named_stay_two(tmp_path) -> None:
    """And so does the default one where no callback names any."""
    watch, clip = GradWatch(dirpath=tmp_path / "watch"), AdaptiveClip(dirpath=tmp_path / "clip")
    fit(tmp_path, None, [watch, clip])
    assert (watch.run_dir, clip.run_dir) == (tmp_path / "watch", tmp_path / "clip")
    assert not load_run(tmp_path / "watch").step_records
    alone = AdaptiveClip()
    fit(tmp_path, None, [alone])
    assert alone.run_dir == tmp_path / "gradwatch"
