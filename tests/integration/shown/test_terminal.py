"""What a training and its commands print: nothing out of a model, a file or a name steers the terminal."""

from __future__ import annotations

import json
import logging
import math
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradwatch import AdaptiveClip, AnomalyError, GradWatch, tap
from lightning_gradwatch.cli import main
from lightning_gradwatch.plain import command
from tests.models import trainer
from tests.runlogs import write_run
from tests.steering import STEERING_NAMES, steering


class Named(pl.LightningModule):
    """A model whose parts have the names given; one of two recurrent modules is never called, and a step goes wrong."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name.replace(".", "")
        self.parts = nn.ModuleDict()
        for part in ("", "idle"):
            self.parts.add_module(self.name + part, nn.LSTM(3, 4, batch_first=True))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        h = self.parts[self.name](batch * (math.nan if batch_idx == 2 else 1.0))[0]
        return tap(h[:, -1], name=self.name).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, name: str, *callbacks: pl.Callback) -> None:
    trainer(folder, list(callbacks)).fit(Named(name), DataLoader(torch.randn(8, 5, 3), 2))


@pytest.mark.parametrize("name", STEERING_NAMES)
def test_a_fit_prints_nothing_that_steers(tmp_path, caplog, name) -> None:
    """Its closing lines and its warnings, whatever modules, taps and the folder are called; nor does an error's text."""
    folder = tmp_path / name.replace("/", "")
    with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(tmp_path, name, GradWatch(dirpath=folder, on_anomaly="warn", bundles=1), AdaptiveClip(dirpath=folder))
        with pytest.raises(AnomalyError) as raised:
            fit(tmp_path, name, GradWatch(dirpath=tmp_path / "b", on_anomaly="raise"))
        with pytest.raises(ValueError, match="matches none") as refused:
            fit(tmp_path, name, GradWatch(modules=["nothing"]))
    ours = [str(one.message) for one in said if "GradWatch" in str(one.message)]
    assert any("GradWatch" in text for text in ours)
    lines = [record.getMessage() for record in caplog.records if "GradWatch" in record.getMessage()]
    assert lines
    for text in (*ours, *lines, str(raised.value), str(refused.value)):
        assert steering(text) == set(), text


@pytest.mark.parametrize("name", STEERING_NAMES)
def test_the_commands_print_nothing_that_steers(tmp_path, capsys, name) -> None:
    """And the lines that they offer for the shell lead to the very files."""
    folder = tmp_path / name.replace("/", "")
    watch = GradWatch(dirpath=folder, bundles=1, summary=False)
    fit(tmp_path, name, watch)
    capsys.readouterr()
    for arguments in (["events"], ["events", "--json"], ["check"], ["watch", "--once"], ["report"]):
        assert main([arguments[0], str(folder), *arguments[1:]]) == (1 if arguments == ["check"] else 0)
        shown = capsys.readouterr()
        assert steering(shown.out + shown.err) == set()
        for line in shown.out.splitlines():
            if "gradwatch replay" in line:
                words = _words(line.partition("gradwatch replay ")[2])
                assert Path(words[0]).is_file()
                assert words[1:] == ["--module", "tests.integration.shown.test_terminal:Named"]
    (bundle,) = folder.glob("bundles/*")
    assert main(["replay", str(bundle), "--module", f"{__name__}:Named", "--args", json.dumps({"name": name})]) == 0
    shown = capsys.readouterr()
    assert "Replayed: the same event." in shown.out
    assert steering(shown.out + shown.err) == set()


def _words(line: str) -> list[str]:
    """As a shell reads them."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


BARE = """\
import sys
for library in {blocked!r}:
    sys.modules[library] = None
from lightning_gradwatch.cli import main
sys.exit(main(sys.argv[1:]))
"""
EXTRAS = ("rich", "plotly", "pandas", "matplotlib", "markdown_it")


def bare(*arguments: object, blocked: tuple[str, ...] = EXTRAS) -> Any:
    """The command in a process that has none of the extras."""
    code = BARE.format(blocked=blocked)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_without_the_extras_the_commands_answer(tmp_path) -> None:
    """What is for reading is plain text; what draws says in one line what it needs."""
    folder = write_run(tmp_path / "run", explode_at=100, start=-0.5, end=-0.5)
    for arguments, code, words in (
        (["events", folder], 0, ("model.rnn, layer 0", "STEP_SKIPPED", "More: gradwatch explain step-skipped")),
        (["explain"], 0, ("vanishing-hidden-gradient", "critical")),
        (["explain", "not-observed"], 0, ("# NOT_OBSERVED", "What to do")),
        (["check", folder, "--warnings"], 1, ("failed: 0 critical events",)),
        (["watch", folder], 0, ("GradWatch step 599", "model.rnn, layer 0 (RNN): ", "events ", "STEP_SKIPPED")),
    ):
        done = bare(*arguments)
        assert (done.returncode, done.stderr) == (code, "")
        assert all(word in done.stdout for word in words), done.stdout
        assert max(map(len, done.stdout.splitlines())) < 1000
    done = bare("report", folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'lightning-gradwatch[report]'" in done.stderr


@pytest.mark.parametrize("lacking", [(), ("plotly",), ("markdown_it",), EXTRAS])
def test_the_closing_lines_name_what_works_here(tmp_path, monkeypatch, caplog, lacking) -> None:
    """Each command that they print answers in the same environment; of one that would not they say what it needs."""
    for library in lacking:
        monkeypatch.setitem(sys.modules, library, None)
    with caplog.at_level(logging.INFO):
        fit(tmp_path, "rnn", GradWatch(dirpath=tmp_path / "a run"))
    lines = [line.strip() for line in caplog.text.splitlines() if line.strip().startswith("gradwatch ")]
    assert lines == [
        command("gradwatch", name, str(tmp_path / "a run")) for name in (["report"] * (not lacking) + ["events"])
    ]
    assert ("it needs pip install 'lightning-gradwatch[report]'" in caplog.text) is bool(lacking)
    for line in lines:
        done = bare(*shlex.split(line)[1:], blocked=lacking)
        assert (done.returncode, done.stderr) == (0, "")
