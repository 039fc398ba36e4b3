"""Which run log a resumed run writes to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
from tests.models import TinyLanguageModel, sentences, trainer

MAKES = {
    "watch": lambda **o: [GradWatch(summary=False, every_n_steps=1, **o)],
    "clip": lambda **o: [AdaptiveClip(**o)],
    "both": lambda **o: [GradWatch(summary=False, every_n_steps=1, **o), AdaptiveClip(**o)],
}


def folders(root: Path, callbacks: list[Any], epochs: int, ckpt_path: Path | None = None) -> set[Path]:
    """Fit with a logger that makes a version folder for each; where the callbacks wrote."""
    fit = trainer(root, callbacks, max_steps=-1, max_epochs=epochs, logger=CSVLogger(root))
    fit.fit(TinyLanguageModel(), sentences(), ckpt_path=ckpt_path)
    fit.save_checkpoint(root / f"{epochs}.ckpt", weights_only=False)
    return {callback.run_dir for callback in callbacks}


@pytest.mark.parametrize("kind", MAKES)
def test_version_folders_do_not_part_a_run(tmp_path, kind) -> None:
    """The log lies in the first version's folder, whichever the logger is at, and has all the steps."""
    (first,) = folders(tmp_path, MAKES[kind](), 1)
    for epochs in (2, 3):
        assert folders(tmp_path, MAKES[kind](), epochs, tmp_path / f"{epochs - 1}.ckpt") == {first}
    assert len(list((tmp_path / "lightning_logs").iterdir())) == 3
    run = load_run(first)
    records = run.profile_records if kind == "watch" else run.step_records
    assert sorted({record["step"] for record in records}) == list(range(12))


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("fate", ["deleted", "moved", "another's", "not writable"])
def test_a_log_that_cannot_be_continued_harms_nothing(tmp_path, monkeypatch, kind, fate) -> None:
    """The resumed run writes into its own version's folder, and leaves the other alone."""
    (first,) = folders(tmp_path, MAKES[kind](), 1)
    if fate == "deleted":
        shutil.rmtree(first)
    elif fate == "moved":
        shutil.move(first, tmp_path / "kept")
    elif fate == "another's":
        (first / "run.json").write_text('{"run_id": "another"}')
    else:
        monkeypatch.setattr("os.access", lambda *_: False)
    before = {path: path.read_bytes() for path in first.rglob("*.json*")}
    (second,) = folders(tmp_path, MAKES[kind](), 2, tmp_path / "1.ckpt")
    assert second == tmp_path / "lightning_logs" / "version_1" / "gradwatch"
    assert {path: path.read_bytes() for path in first.rglob("*.json*")} == before
    assert load_run(second).path == second


def test_a_dirpath_counts_more(tmp_path) -> None:
    """Who names a folder at the resumption gets it."""
    folders(tmp_path, MAKES["clip"](), 1)
    assert folders(tmp_path, MAKES["clip"](dirpath=tmp_path / "x"), 2, tmp_path / "1.ckpt") == {tmp_path / "x"}


def test_one_folder_written_two_ways_is_one(tmp_path, monkeypatch) -> None:
    """Both callbacks write to the same log."""
    monkeypatch.chdir(tmp_path)
    callbacks = [GradWatch(summary=False, dirpath="x"), AdaptiveClip(dirpath=f"{tmp_path}/y/../x/")]
    (only,) = {Path(found).resolve() for found in folders(tmp_path, callbacks, 1)}
    assert only == tmp_path / "x"
    assert {"profiles.jsonl", "steps.jsonl"} <= {path.name for path in only.iterdir()}
