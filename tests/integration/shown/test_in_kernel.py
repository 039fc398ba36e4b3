"""In a notebook: a real kernel, no terminal, and what its cells show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from lightning_gradwatch import load_run
from tests.browser import Browser, find_browser
from tests.integration.processes import ROOT
from tests.runlogs import write_run

pytestmark = pytest.mark.slow

FIRST_RUN = ROOT / "docs" / "tutorial" / "first_run.ipynb"


def execute(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run it in a kernel whose working folder this is; the cells of code, an error in one of them is one here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def of(*cells: str) -> Any:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return notebook


def streams(cell: Any) -> str:
    """What it wrote, to whichever stream."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def shown(cell: Any, kind: str) -> list[str]:
    """What it displayed of a MIME type."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


class TestTheNotebookOfTheDocumentation:
    """Run as a reader does."""

    def test_it_shows_what_it_says(self, tmp_path, monkeypatch) -> None:
        """The closing lines, the verdicts, the report, the figure; and the network learns, where it did not."""
        notebook = nbformat.read(FIRST_RUN, 4)
        _, bare, verdicts, report, kept, figure, table = execute(notebook, tmp_path, monkeypatch)
        assert f"load_run('{tmp_path / 'gradwatch'}').show()" in streams(bare)
        assert "vanishing. The gradient falls under 1 %" in streams(bare)
        right = [int(re.search(r"right in the last 20 steps: (\d+)%", streams(cell))[1]) for cell in (bare, kept)]
        assert right[0] < 60
        assert right[1] > 95
        assert "vanishing" in shown(verdicts, "text/html")[0]
        assert 'srcdoc="&lt;!doctype html&gt;' in shown(report, "text/html")[0]
        assert shown(figure, "image/png")
        assert "growth_rate" in shown(table, "text/html")[0]

    def test_it_is_kept_without_what_it_shows(self) -> None:
        """Outputs would be megabytes, and somebody's paths; the documentation's build makes them."""
        cells = [cell for cell in json.loads(FIRST_RUN.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert [(cell["outputs"], cell["execution_count"]) for cell in cells] == [([], None)] * len(cells)


TRAINING = """\
import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning_gradwatch import AdaptiveClip, GradWatch
from tests.models import TinyLanguageModel, sentences
watch, clip = GradWatch(every_n_steps=2, progress_bar=True), AdaptiveClip(progress_bar=True)
quiet = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
"""


@pytest.mark.parametrize("bar", ["TQDMProgressBar()", "RichProgressBar()"])
def test_progress_bars_and_closing_lines(bar, tmp_path, monkeypatch) -> None:
    """With either bar the closing lines come once, and name what works in a cell; nothing is an error."""
    fit = f"pl.Trainer(max_epochs=2, callbacks=[watch, clip, {bar}], **quiet).fit(TinyLanguageModel(), sentences())"
    fitted, shows = execute(of(TRAINING + fit, "watch"), tmp_path, monkeypatch)
    said = streams(fitted)
    assert said.count("GradWatch: how far the gradient reaches back through time") == 1
    assert f"load_run('{tmp_path / 'gradwatch'}').show()" in said
    assert "gradwatch report" not in said
    assert "Traceback" not in said
    assert "rnn, layer 0" in shown(shows, "text/html")[0]


def test_without_what_draws(tmp_path, monkeypatch) -> None:
    """The closing lines name what works all the same, and `show` says what to install."""
    lacking = "import sys\nsys.modules.update(dict.fromkeys(('plotly', 'markdown_it', 'rich')))\n"
    fit = (
        "pl.Trainer(max_epochs=1, callbacks=[watch, TQDMProgressBar()], **quiet).fit(TinyLanguageModel(), sentences())"
    )
    say = "from lightning_gradwatch import load_run\ntry: load_run(watch.run_dir).show()\nexcept ImportError as e: print(e)"
    events = f"%run -m lightning_gradwatch events {tmp_path / 'gradwatch'}"
    fitted, refused, read = execute(of(TRAINING + lacking + fit, say, events), tmp_path, monkeypatch)
    assert events in streams(fitted)
    assert "it needs %pip install 'lightning-gradwatch[report]'" in streams(fitted)
    assert "pip install 'lightning-gradwatch[report]'" in streams(refused)
    assert "rnn, layer 0" in streams(read)


@pytest.mark.parametrize("names", ["model.rnn", "</iframe><script>alert(1)</script>", "\"'>& <b>"])
def test_a_report_in_a_cell(names, tmp_path, monkeypatch) -> None:
    """In a browser its pictures are drawn within the frame, whatever a module is called, and nothing outside is touched."""
    folder = write_run(tmp_path / "run", module=names, steps=60)
    (cell,) = execute(
        of(f"from lightning_gradwatch import load_run\nload_run({str(folder)!r}).show(500)"), tmp_path, monkeypatch
    )
    (page,) = shown(cell, "text/html")
    assert page.count("<") == 2  # the frame's own
    assert "height: 500px" in page
    executable = find_browser()
    if executable is None:
        pytest.skip("there is no Chromium here")
    (tmp_path / "cell.html").write_text(f"<!doctype html><title>notebook</title><body>{page}", "utf-8")
    browser = Browser(executable, tmp_path / "profile")
    try:
        browser.open(tmp_path / "cell.html")
        assert browser.run("document.title") == "notebook"
        assert browser.run("document.querySelector('iframe').contentDocument") is None  # an origin of its own
        assert browser.problems == []
    finally:
        browser.close()


def test_elsewhere_it_is_written(tmp_path, capsys) -> None:
    """Outside of a notebook `show` writes the page and says where."""
    run = load_run(write_run(tmp_path / "run", steps=40))
    run.show()
    assert capsys.readouterr().out == f"{run.path / 'report.html'}\n"
    assert (run.path / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("height", [0, 99, "800", 1.5, True])
def test_a_height_that_is_none(height, tmp_path) -> None:
    """One clear error."""
    run = load_run(write_run(tmp_path / "run", steps=40))
    with pytest.raises(ValueError, match=r"`height` must be (a whole number )?≥ 100; found"):
        run.show(height)
