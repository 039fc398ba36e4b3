"""The demo through the real command: reduced for every day, in full for its claims."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path

import pytest
import torch

from lightning_gradwatch import load_run
from lightning_gradwatch.cli import main
from lightning_gradwatch.demo.run import fresh_folder, run_demo


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text that a small model can learn."""
    path = tmp_path / "verse.txt"
    path.write_text("the cat sat on the mat and the dog lay on the rug. " * 60, "utf-8")
    return path


def _own(text: Path, out: Path, *more: str) -> int:
    sizes = ("--hidden", "16", "--timesteps", "20", "--batch-size", "4", "--steps", "12", "--accelerator", "cpu")
    return main(["demo", "--text", str(text), "--out", str(out), *sizes, *more])


@pytest.mark.parametrize(("cell", "kind"), [("rnn", "RNN"), ("gru", "GRU"), ("lstm", "LSTM")])
def test_ones_own_text_leaves_a_run_log_a_picture_and_a_report(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str, kind: str
) -> None:
    """Every layer's horizon is printed, and what is said to lie somewhere lies there."""
    out = tmp_path / "out"
    assert _own(text, out, "--cell", cell, "--layers", "2", "--dropout", "0.1", "--tied") == 0
    printed = capsys.readouterr()
    assert "perplexity" in printed.out
    for layer in (0, 1):
        assert f"recurrent, layer {layer}: horizon" in printed.out
    assert (out / "profiles.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (out / "report.html").read_text("utf-8")
    run = load_run(out / f"text-{cell}")
    assert {record["kind"] for record in run.profile_records} == {kind}
    assert len(run.step_records) == 12
    for name in ("profiles.png", "report.html"):
        assert name in printed.out


def test_the_same_seed_gives_the_same_run_and_the_callers_generator_stays(text: Path, tmp_path: Path) -> None:
    """Two runs agree in every recorded number; another seed differs; torch's generator and threads are put back."""
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert _own(text, tmp_path / name, "--seed", seed) == 0
    first, again, other = (
        [record["total"] for record in load_run(tmp_path / name / "text-lstm").profile_records] for name in "abc"
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_lightnings_boilerplate_is_kept_quiet_and_only_for_the_demo(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing on standard error, no warning, and Lightning's logger speaks again afterwards."""
    level = logging.getLogger("lightning.pytorch").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # nobody is shown those of other packages
        assert _own(text, tmp_path / "out") == 0
    assert capsys.readouterr().err == ""
    assert logging.getLogger("lightning.pytorch").level == level


def test_an_earlier_demo_is_not_overwritten(tmp_path: Path) -> None:
    """A folder that holds something gets a numbered neighbour; an empty one is taken."""
    assert fresh_folder(tmp_path / "out") == tmp_path / "out"
    assert fresh_folder(tmp_path / "out") == tmp_path / "out"
    for number in (1, 2):
        (fresh_folder(tmp_path / "out") / "something").touch()
        assert fresh_folder(tmp_path / "out") == tmp_path / f"out-{number}"


def test_mistakes_are_one_line_and_exit_code_2(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the user gets wrong is said in one line, and nothing is left behind."""
    latin, short, out = tmp_path / "latin.txt", tmp_path / "short.txt", tmp_path / "out"
    latin.write_bytes(b"\xff\xfe" * 500)
    short.write_text("too short")
    mistakes = {
        "UTF-8": ["--text", str(latin)],
        "found 9 characters": ["--text", str(short)],
        "No such file": ["--text", str(tmp_path / "nothing.txt")],
        "--layers: must be a whole number ≥ 1; found '0'": ["--text", str(text), "--layers", "0"],
        "`--dropout` must be in [0, 1); found 1.0": ["--text", str(text), "--dropout", "1"],
        "`--lr` must be finite and > 0; found 0.0": ["--text", str(text), "--lr", "0"],
        "--steps: must be a whole number ≥ 1; found '0'": ["--steps", "0"],
        "belongs to a text of your own": ["--cell", "gru"],
        "invalid choice": ["--text", str(text), "--cell", "transformer"],
    }
    for said, arguments in mistakes.items():
        assert main(["demo", "--out", str(out), *arguments]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert printed.err.count("\n") == 1
        assert not out.exists()
    assert main(["demo", "--out", str(text), "--text", str(text)]) == 2
    assert "`--out` must be a folder" in capsys.readouterr().err


def test_the_reduced_demo_says_only_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After two steps nothing has been learned, and nothing of the kind is said."""
    assert main(["demo", "--out", str(tmp_path / "out"), "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "carries the subject" not in printed
    assert "vanilla RNN" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("agreement-rnn", "agreement-gru", "agreement-lstm", "explosion-bare", "explosion-clipped"),
        *("sentence.png", "profiles.png", "report.html"),
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_bears_out_what_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The RNN guesses beyond its horizon where both gated networks do not; of two explosions one is held."""
    result = run_demo(tmp_path / "out")
    rnn, *gated = result.memories
    assert rnn.cell == "rnn"
    near, *far = rnn.accuracies
    assert not rnn.reach.censored
    assert near.share > 0.95
    for accuracy in far:
        assert accuracy.bucket[0] > rnn.reach.horizon
        assert accuracy.at_chance
    for memory in gated:
        assert all(accuracy.share > 0.9 for accuracy in memory.accuracies)
        assert memory.reach.horizon > 4 * rnn.reach.horizon
    bare, clipped = result.explosion.bare, result.explosion.clipped
    assert bare.first_nonfinite_step is not None
    assert not bare.weights_finite
    assert math.isnan(bare.perplexity)
    assert clipped.first_nonfinite_step is None
    assert clipped.weights_finite
    assert clipped.perplexity < result.explosion.unigram / 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "vanilla RNN falls to chance past its horizon" in printed
    assert printed.count("carries the subject across every distance") == 2
    assert "the run is lost" in printed
    assert "it learns" in printed
