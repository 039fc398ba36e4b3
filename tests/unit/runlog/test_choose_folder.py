"""Which folder a run may write to."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch.runlog import RunLogWriter, choose_folder
from lightning_gradwatch.runlog.writer import read_meta
from tests.runlogs import write_run


def test_a_free_folder_is_taken(tmp_path):
    """Absent or empty, the folder wished for it is."""
    (tmp_path / "empty").mkdir()
    assert choose_folder(tmp_path / "gradwatch", run_id=None) == tmp_path / "gradwatch"
    assert choose_folder(tmp_path / "empty", run_id="x") == tmp_path / "empty"


def test_an_earlier_run_is_never_overwritten(tmp_path):
    """Each further run gets the next number; nothing in the earlier folders changes."""
    base = tmp_path / "gradwatch"
    for number in range(3):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
        folder = choose_folder(base, run_id=None)
        assert folder.name == ("gradwatch" if number == 0 else f"gradwatch-{number}")
        write_run(folder, steps=2, seed=number)
        assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_resumed_run_continues_its_own(tmp_path, number):
    """The folder with the run's own identity is found, also when it is a numbered one or the first has gone."""
    base = tmp_path / "run[1]"
    for seed in range(3):
        write_run(choose_folder(base, run_id=None), steps=2, seed=seed)
    own = tmp_path / ("run[1]" if number == 0 else f"run[1]-{number}")
    assert choose_folder(base, run_id=f"RNN-{number}") == own
    if number:
        for path in base.iterdir():
            path.unlink()
        assert choose_folder(base, run_id=f"RNN-{number}") == own


def test_a_foreign_identity_finds_a_free_folder(tmp_path):
    """A checkpoint of another machine resumes into a folder of its own."""
    write_run(tmp_path / "gradwatch", steps=2)
    assert choose_folder(tmp_path / "gradwatch", run_id="elsewhere") == tmp_path / "gradwatch-1"


def test_a_file_in_the_way_is_an_error(tmp_path):
    """A file cannot become a folder, and is not a run that one could step aside from."""
    (tmp_path / "gradwatch").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"):
        choose_folder(tmp_path / "gradwatch", run_id=None)


def test_the_present_folder_steps_aside_to_a_sibling(tmp_path, monkeypatch):
    """`.` has no name that a number could follow; its real one is taken."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "train.py").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    folder = choose_folder(Path("."), run_id=None)
    assert folder == tmp_path / "here-1"
    RunLogWriter(folder, header={}).close()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["train.py"]


def _claim_many(base: Path, times: int, start: Any, found: Any) -> None:
    for number in range(times):
        start.wait()
        found.put((number, str(choose_folder(base / str(number), run_id=None))))


@pytest.mark.parametrize(("processes", "made"), [(2, False), (2, True), (4, False)])
def test_processes_that_start_together_share_no_folder(tmp_path, processes, made):
    """Of many that ask at the same moment each gets one of its own, also where the folder is there and empty."""
    times, context = 100, multiprocessing.get_context("spawn")
    start, found = context.Barrier(processes), context.Queue()
    if made:
        for number in range(times):
            (tmp_path / str(number)).mkdir()
    workers = [context.Process(target=_claim_many, args=(tmp_path, times, start, found)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    folders = [found.get(timeout=60) for _ in range(processes * times)]
    for worker in workers:
        worker.join()
    assert len({folder for _, folder in folders}) == processes * times
    for number in range(times):
        names = {Path(folder).name for index, folder in folders if index == number}
        assert names == {str(number), *(f"{number}-{other}" for other in range(1, processes))}


def test_a_claimed_folder_has_an_identity_from_the_start(tmp_path):
    """Its run.json names the run before anything else is written, and keeps the name."""
    folder = choose_folder(tmp_path / "run", run_id=None)
    run_id = read_meta(folder)["run_id"]
    RunLogWriter(folder, header={}).meta({"versions": {}})
    assert read_meta(folder)["run_id"] == run_id
    assert choose_folder(tmp_path / "run", run_id=run_id) == folder
    assert choose_folder(tmp_path / "run", run_id="another") == tmp_path / "run-1"
    assert read_meta(tmp_path / "run-1")["run_id"] == "another"
