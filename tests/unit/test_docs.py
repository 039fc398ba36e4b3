"""The documentation says what is so: its snippets run, and nothing public is missing from it."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import logging
import os
import re
import shlex
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_gradwatch
from lightning_gradwatch import AdaptiveClip, EventKind, GradWatch
from lightning_gradwatch.callbacks import factory
from lightning_gradwatch.cli import _SUBCOMMANDS, _parser
from lightning_gradwatch.clip import AGC
from lightning_gradwatch.report import explain
from lightning_gradwatch.runlog.summary import Verdict
from tests.models import TinyLanguageModel, sentences, trainer
from tests.runlogs import write_run
from tests.versions import cpu_scaler

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/*/*.md"))]
PAGES = [page for page in PAGES if page != ROOT / "docs" / "reference" / "events.md"]  # made from the package's own
EXPLANATIONS = (
    ROOT / "lightning_gradwatch" / "report" / "explanations"
)  # docs/conf.py makes docs/reference/events of them


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def needs_a_package_that_is_not_here(snippet: str) -> bool:
    """One of those whose modules are watched in an example; the tests' extra has them, save two that are too large."""
    rare = r"mambapy|minGRU_pytorch|ncps|snntorch|darts|neuralforecast"
    wanted = re.findall(rf"^(?:from|import) ({rare})\b|^class \w+\((Spiking)\)", snippet, re.MULTILINE)
    wanted = [package or "snntorch" for package, _ in wanted]
    return any(importlib.util.find_spec(name) is None for name in wanted)


def text(*names: str) -> str:
    return "\n".join((ROOT / "docs" / name).read_text("utf-8") for name in names)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """What a reader has at hand: the imports, some data, and the run log of a training."""
    monkeypatch.chdir(tmp_path)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    make = pl.Trainer.__init__

    def quick(self, **options) -> None:
        make(self, **{**quiet, "accelerator": "cpu", **options})

    monkeypatch.setattr(pl.Trainer, "__init__", quick)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "disabled", True)
    write_run(tmp_path / "lightning_logs" / "version_0" / "gradwatch", steps=30)
    data = TensorDataset(torch.randn(8, 5, 4), torch.randn(8, 1))
    return {
        "pl": pl,
        "torch": torch,
        "nn": nn,
        "GradWatch": GradWatch,
        "AdaptiveClip": AdaptiveClip,
        "AGC": AGC,
        "loader": DataLoader(data, batch_size=4),
    }


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(page, prepared):
    """One after the other, as they are read."""
    for number, snippet in enumerate(blocks(page, "python")):
        if needs_a_package_that_is_not_here(snippet):
            continue
        exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), prepared)


def made_by(tree: ast.AST) -> set[str]:
    """The names that a snippet imports, defines or assigns, arguments among them."""
    nodes = list(ast.walk(tree))
    imported = [one for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for one in node.names]
    return {
        *((one.asname or one.name).partition(".")[0] for one in imported),
        *(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)),
        *(node.arg for node in nodes if isinstance(node, ast.arg)),
        *(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)),
    }


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.stem)
def test_a_page_says_where_each_name_comes_from(page):
    """Pasted one after the other into an empty file, its snippets lack no import and no data."""
    known = set(dir(builtins))
    for snippet in map(ast.parse, blocks(page, "python")):
        known |= made_by(snippet)
        assert {node.id for node in ast.walk(snippet) if isinstance(node, ast.Name)} <= known


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_stands_in_the_table_of_verdicts(verdict):
    """With a sign, on the page about the report."""
    assert re.search(rf"^\| \S {verdict} \| ", text("how-to/read-the-report.md"), re.MULTILINE)


def test_no_snippet_hides():
    """Every block of code has a language, so that none is left out of the tests by mistake."""
    known = {"python", "console", "{toctree}", "{eval-rst}", "yaml", "text", ""}
    for page in [*PAGES, *EXPLANATIONS.glob("*.md")]:
        fences = re.findall(r"^```(.*)$", page.read_text("utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0, page
        assert set(fences[1::2]) <= {""}, page
        assert set(fences[::2]) <= known - {""}, page


def test_every_command_line_is_understood():
    """Each `gradwatch` line in a block of console text has arguments that the command takes."""
    lines = [line for page in PAGES for block in blocks(page, "console") for line in block.splitlines()]
    commands = [line.partition("gradwatch ")[2] for line in lines if re.match(r"\$?\s*gradwatch ", line)]
    assert len(commands) >= 5
    for command in commands:
        _parser().parse_args(shlex.split(re.split(r"\|\||[|#]", command)[0]))


@pytest.mark.parametrize("name", lightning_gradwatch.__all__)
def test_a_public_name_is_in_the_reference(name):
    """Whatever can be imported from the package has an entry."""
    assert re.search(rf"^\.\. auto(class|function):: {name}$", text("reference/api.md"), re.MULTILINE)


@pytest.mark.parametrize("kind", EventKind)
def test_an_event_kind_has_a_page(kind):
    """It says what the kind means, how it is found, what it looks like, and what to do; a line on what to look at first leads there."""
    page = (EXPLANATIONS / f"{kind.page}.md").read_text("utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == ["What it means", "How it is found", "In the report", "What to do", "Example"]
    assert all(len(part) > 80 for part in re.split(r"^## .*$", page, flags=re.MULTILINE)[1:])
    assert f"| {{ref}}`{kind} <{kind.lower()}>` |" in text("how-to/act-on-an-event.md")


def test_no_page_is_left_over():
    """Each belongs to a kind."""
    assert {page.stem for page in EXPLANATIONS.glob("*.md")} == {explain.TOY, *(kind.page for kind in EventKind)}


@pytest.mark.parametrize("kind", EventKind)
def test_the_example_of_an_event_kind_provokes_it(kind, prepared):
    """As a reader would run it: the toy model, then the fault."""
    if "GradScaler" in explain.example(kind):
        cpu_scaler()
    names: dict = {}
    exec(compile(explain.example(kind), f"{kind.page}.md", "exec"), names)
    found = [names[name] for name in ("watch", "clip") if name in names]
    assert kind in {event.kind for callback in found for event in callback.events}


def test_the_pages_of_the_documentation_are_those_of_the_package(tmp_path, monkeypatch):
    """The build writes one page a kind, with its message, remedy and explanation, and an index that leads to each."""
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    monkeypatch.setattr(conf, "HERE", tmp_path)
    conf.write_event_pages(None)
    index = (tmp_path / "reference" / "events.md").read_text("utf-8")
    for kind in EventKind:
        page = (tmp_path / "reference" / "events" / f"{kind.page}.md").read_text("utf-8")
        assert kind.remedy in page
        assert explain.body(kind.page) in page
        assert f"(events/{kind.page}.md)" in index
        assert f"events/{kind.page}\n" in index


@pytest.mark.parametrize(
    "command", [c for c in _SUBCOMMANDS if importlib.util.find_spec(f"lightning_gradwatch.cli.{c}")]
)
def test_a_command_is_in_the_reference(command):
    """Each subcommand has a line."""
    assert f"| `gradwatch {command}" in text("reference/command-line.md")


def test_every_variable_is_documented():
    """Those that set an argument of GradWatch from outside."""
    page = text("how-to/add-to-my-trainer.md")
    missing = [name for name in factory._READERS if f"`{factory.SWITCH}_{name.upper()}`" not in page]
    assert not missing


def test_every_logger_key_is_in_the_reference(tmp_path):
    """What a training logs is on the page, and what is on the page is logged."""
    logged: set[str] = set()

    class Noting(pl.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.update(metrics)

    for policy in ("norm", AGC()):
        watch, clip = GradWatch(every_n_steps=1), AdaptiveClip(policy=policy, clip_through_time=1.0)
        fit = trainer(tmp_path, [watch, clip], max_steps=2, logger=Noting(tmp_path), log_every_n_steps=1)
        fit.fit(TinyLanguageModel(), sentences())
    ours = {key.replace("gradwatch/rnn/l0/", "gradwatch/<module>/l<layer>[r]/") for key in logged if "gradwatch" in key}
    documented = set(re.findall(r"^\| `(gradwatch/.*?)` \|", text("reference/logger-keys.md"), re.MULTILINE))
    assert ours == documented


def test_links_lead_somewhere():
    """Each picture and page that a page names by its path is there."""
    for page in [*PAGES, *EXPLANATIONS.glob("*.md")]:
        folder = ROOT / "docs" / "reference" / "events" if page.parent == EXPLANATIONS else page.parent
        for target in re.findall(r"\]\(([^)#]+?\.(?:png|md))\)", page.read_text("utf-8")):
            assert Path(os.path.normpath(folder / target)).exists(), f"{page.name} → {target}"
        for target in re.findall(r"\{doc\}`([^`]+)`", page.read_text("utf-8")):
            base = ROOT / "docs" if target.startswith("/") else page.parent
            pages = [base / f"{target.lstrip('/')}.{ending}" for ending in ("md", "ipynb")]
            assert any(map(Path.exists, pages)) or target.endswith("events"), f"{page.name} → {target}"


def test_the_walk_passes_every_room_once():
    """How it works follows a gradient through the package: each folder is named once, and none that is not there."""
    package = ROOT / "lightning_gradwatch"
    rooms = {folder.parent for ending in ("py", "md") for folder in package.rglob(f"*.{ending}")} - {package}
    walked = re.findall(r"^\*\*`([a-z_/]+)/`\*\*", text("explanation/how-it-works.md"), re.MULTILINE)
    assert sorted(walked) == sorted(room.relative_to(package).as_posix() for room in rooms)


def test_the_walk_goes_the_way_of_a_gradient():
    """Hook, recurrent call, adjoint, profile, event, clip, record, report."""
    headings = re.findall(r"^### (?:The )?(.*)$", text("explanation/how-it-works.md"), re.MULTILINE)
    assert headings[:8] == ["hook", "recurrent call", "adjoint", "profile", "event", "clip", "record", "report"]


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")],
    ids=lambda page: f"{page.parent.name}/{page.stem}",
)
def test_a_file_that_is_named_is_there(page):
    """By its path in the repository or in the package; in the walk, by its name in the room that the paragraph begins with."""
    package, room = ROOT / "lightning_gradwatch", None
    for paragraph in re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL).split("\n\n"):
        begins = re.match(r"\*\*`([a-z_/]+)/`\*\*", paragraph)
        room = package / begins[1] if begins else room
        for name in re.findall(r"`([\w/]+\.(?:py|md|toml))`", paragraph):
            folders = [ROOT, package, page.parent, *([room] if room else [])]
            assert any((folder / name).exists() for folder in folders), f"{page.name} → {name}"
