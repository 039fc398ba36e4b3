"""The wheel as people install it: built from the source distribution, put into environments that hold nothing else.

An environment holds links to those packages of the present one that the wheel's requirements lead to, by their own metadata.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.integration.portable.environments import ROOT, Environment, needed_by, requirements_of

pytestmark = pytest.mark.slow

DRAWING = ("pandas", "plotly", "matplotlib", "rich", "markdown_it")
NEWCOMER = Path(__file__).with_name("newcomer.py")
PIP = "pip install 'lightning-gradwatch[report]'"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of source distribution and wheel, the one made of the other."""
    folder = tmp_path_factory.mktemp("dist")
    build = ("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    subprocess.run([sys.executable, *map(str, build)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel, tmp_path_factory) -> Distribution:
    """What the wheel says of itself."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if ".dist-info/" in name])
    (info,) = folder.glob("*.dist-info")
    return Distribution.at(info)


@pytest.fixture(scope="module")
def make(wheel, metadata, tmp_path_factory):
    """An environment with the wheel and what it requires, with an extra or more, or less."""

    def environment(extra: str = "", more: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> Environment:
        made = Environment(tmp_path_factory.mktemp("environment"))
        wanted = [*requirements_of(metadata, extra), *map(Requirement, more)]
        made.link(sorted(needed_by(wanted) - set(without)))
        done = made.pip("install", "--no-deps", "--no-index", "--quiet", wheel)
        assert done.returncode == 0, done.stderr
        return made

    return environment


@pytest.fixture(scope="module")
def core(make) -> Environment:
    """The wheel with its core requirements alone: ``pytorch_lightning`` is there, ``lightning`` is not."""
    return make()


@pytest.fixture(scope="module")
def drawing(make) -> Environment:
    """What a newcomer installs: ``lightning-gradwatch[report]``."""
    return make("report")


@pytest.fixture(scope="module")
def trained(core, tmp_path_factory) -> Path:
    """The run log of a newcomer's training there."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = core.run(NEWCOMER, folder, NAMESPACE="pytorch_lightning")
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stderr, "utf-8")
    return folder


class TestWhatIsBuilt:
    """The files that would be uploaded."""

    def test_an_index_would_take_them(self, built) -> None:
        """Metadata and long description pass twine's check, warnings included."""
        command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert len(list(built.iterdir())) == 2

    def test_the_description_leads_nowhere_that_is_not_there(self, metadata) -> None:
        """No picture and no link of the long description is relative: beside it there are no files."""
        text = metadata.metadata.get_payload()  # pyright: ignore[reportAttributeAccessIssue]
        assert text.startswith("# lightning-gradwatch")
        targets = [part.partition(")")[0] for part in text.split("](")[1:]]
        assert [target for target in targets if not target.startswith("https://")] == []
        assert "`docs/reference/configurations.md`" in text
        assert "](docs/" in (ROOT / "README.md").read_text("utf-8")  # which has what was taken out

    def test_the_wheel_is_the_package_alone(self, wheel) -> None:
        """With its type marker, its pages and its page template; neither tests nor documentation."""
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lightning_gradwatch"}
        package = ROOT / "lightning_gradwatch"
        files = {f"lightning_gradwatch/{f.relative_to(package).as_posix()}" for f in package.rglob("*") if f.is_file()}
        assert {name for name in names if ".dist-info/" not in name} == {f for f in files if "__pycache__" not in f}

    def test_the_source_distribution_can_be_worked_on(self, built) -> None:
        """It holds what the tests, the checks and the documentation need, and nothing that was made."""
        (path,) = built.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        needed = {"Makefile", "constraints.txt", "CONTRIBUTING.md", "CITATION.cff", "tests/conftest.py", "docs/conf.py"}
        assert needed <= names
        assert [
            name for name in names if any(made in name for made in ("_build", "__pycache__", "reference/events"))
        ] == []

    def test_what_it_says_of_versions_agrees(self, metadata) -> None:
        """A classifier names no Python that pip would refuse."""
        allowed = SpecifierSet(metadata.metadata["Requires-Python"])
        pythons = [c.rpartition(" ")[2] for c in metadata.metadata.get_all("Classifier") or [] if ":: 3." in c]
        assert pythons
        assert [version for version in pythons if f"{version}.0" not in allowed] == []


class TestTheCoreAlone:
    """The wheel, and of the packages here only what it requires."""

    def test_it_is_complete(self, core) -> None:
        """Pip finds nothing that is missing or too old, and no extra."""
        done = core.pip("check")
        assert (done.returncode, done.stdout.strip()) == (0, "No broken requirements found."), done.stdout
        absent = f"from importlib.util import find_spec as f; print([n for n in {(*DRAWING, 'lightning')} if f(n)])"
        assert core.run("-c", absent).stdout.strip() == "[]"

    def test_every_module_can_be_imported(self, core) -> None:
        """None imports an extra by accident."""
        code = (
            "import importlib, pkgutil, lightning_gradwatch as g\n"
            "names = [m.name for m in pkgutil.walk_packages(g.__path__, g.__name__ + '.')]\n"
            "for name in names: name.endswith('__main__') or importlib.import_module(name)\n"
            "print(len(names), [getattr(g, n) for n in g.__all__] and g.__file__)"
        )
        done = core.run("-W", "error::ImportWarning", "-c", code)
        assert done.returncode == 0, done.stderr
        count, _, place = done.stdout.strip().partition(" ")
        assert int(count) > 150
        assert Path(place).is_relative_to(core.site)

    def test_both_callbacks_work_in_a_fit(self, trained) -> None:
        """There are profiles, the NaN is found, the step is skipped, and the closing lines say what can be done here."""
        kinds = [json.loads(line).get("kind") for line in (trained / "events.jsonl").read_text("utf-8").splitlines()]
        assert {"NONFINITE_INPUT", "STEP_SKIPPED"} <= set(kinds)
        assert '"module":"rnn"' in (trained / "profiles.jsonl").read_text("utf-8")
        said = (trained / "said.txt").read_text("utf-8")
        assert f"gradwatch events {trained}" in said
        assert f"gradwatch report draws it as a page; it needs {PIP}" in said

    @pytest.mark.parametrize(
        ("arguments", "code", "word"),
        [
            ("--version", 0, "gradwatch 0."),
            ("events RUN", 0, "NONFINITE_INPUT"),
            ("events RUN --json", 0, '"kind": "STEP_SKIPPED"'),
            ("check RUN", 1, "failed: "),
            ("explain", 0, "vanishing-hidden-gradient"),
            ("explain nonfinite-input", 0, "# NONFINITE_INPUT"),
            ("watch RUN", 0, "This run has ended"),
        ],
    )
    def test_a_command_that_reads_works(self, core, trained, arguments, code, word) -> None:
        """As plain text."""
        done = core.command(*[trained if a == "RUN" else a for a in arguments.split()])
        assert (done.returncode, done.stderr) == (code, "")
        assert word in done.stdout

    @pytest.mark.parametrize("arguments", ["report RUN", "demo"])
    def test_a_command_that_draws_says_what_to_install(self, core, trained, arguments) -> None:
        """In one line."""
        done = core.command(*[trained if a == "RUN" else a for a in arguments.split()])
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.rstrip().endswith(PIP)
        assert not (core.folder / "gradwatch-demo").exists()

    def test_a_step_is_repeated(self, core, trained) -> None:
        """From its bundle."""
        (bundle,) = (trained / "bundles").glob("*.pt")
        replay = ("replay", bundle, "--module", f"{NEWCOMER}:Model")
        done = core.command(*replay, NAMESPACE="pytorch_lightning")
        assert done.returncode == 0, done.stderr
        assert "Replayed: the same event." in done.stdout

    def test_data_frames_say_what_they_need(self, core, trained) -> None:
        """The records are there without pandas; the frames name its extra."""
        code = (
            "import sys; from lightning_gradwatch import load_run; run = load_run(sys.argv[1])\n"
            "print(len(run.profile_records) > 0, 'torch' in sys.modules, bool(run._repr_html_()))\n"
            "run.profiles"
        )
        done = core.run("-c", code, trained)
        assert done.stdout.strip() == "True False True"
        assert done.stderr.rstrip().endswith("pip install 'lightning-gradwatch[pandas]'")


class TestEitherName:
    """Lightning has two names, and people have one of them."""

    def test_with_lightning(self, make, tmp_path) -> None:
        """Where ``lightning`` is, which brings the other name along, both work, and nothing is missing."""
        both = make(more=("lightning",))
        assert both.pip("check").returncode == 0
        for namespace in ("lightning.pytorch", "pytorch_lightning"):
            done = both.run(NEWCOMER, tmp_path / namespace, NAMESPACE=namespace)
            assert done.returncode == 0, done.stderr
            assert "NONFINITE_INPUT" in (tmp_path / namespace / "events.jsonl").read_text("utf-8")

    def test_lightning_without_the_other_name(self, make, tmp_path) -> None:
        """As where the wheel was installed with ``--no-deps``: it works all the same."""
        one = make(more=("lightning",), without=("pytorch-lightning",))
        assert one.run("-c", "import pytorch_lightning").returncode == 1
        done = one.run(NEWCOMER, tmp_path / "run", NAMESPACE="lightning.pytorch")
        assert done.returncode == 0, done.stderr

    def test_neither(self, make) -> None:
        """One clear error, which the command says too."""
        none = make("report", without=("pytorch-lightning",))
        done = none.run("-c", "from lightning_gradwatch import GradWatch")
        assert done.stderr.splitlines()[-1] == (
            "ModuleNotFoundError: lightning-gradwatch needs `lightning` or `pytorch_lightning`; found neither. "
            "Install one: pip install lightning"
        )
        demo = none.command("demo")
        assert demo.returncode == 2
        assert demo.stderr.count("\n") == 1
        assert "pip install lightning" in demo.stderr

    def test_a_run_log_is_read_without_lightning_and_torch(self, make, trained) -> None:
        """As on a machine where nothing is trained."""
        reader = make("report", without=("pytorch-lightning", "torch", "torchmetrics"))
        lines = ("events RUN", "check RUN", "watch RUN", "explain not-observed", "report RUN -o page.html")
        done = [reader.command(*[trained if a == "RUN" else a for a in line.split()]) for line in lines]
        assert [(one.returncode, one.stderr) for one in done] == [(0, ""), (1, ""), (0, ""), (0, ""), (0, "")]


class TestWithTheExtra:
    """``lightning-gradwatch[report]``."""

    def test_the_demo(self, drawing) -> None:
        """It runs, leaves its pictures, and each of its runs can be looked at."""
        assert drawing.pip("check").returncode == 0
        done = drawing.command("demo", "--steps", "4")
        assert done.returncode == 0, done.stderr
        left = drawing.folder / "gradwatch-demo"
        assert {"report.html", "profiles.png", "agreement-lstm", "explosion-bare"} <= {f.name for f in left.iterdir()}
        for line in (
            f"events {left / 'agreement-rnn'}",
            f"report {left / 'agreement-gru'}",
            "explain vanishing-hidden-gradient",
        ):
            shown = drawing.command(*shlex.split(line))
            assert (shown.returncode, shown.stderr) == (0, "")
        assert (left / "agreement-gru" / "report.html").stat().st_size > 100_000

    def test_data_frames(self, drawing, trained) -> None:
        """They come with it."""
        code = "import sys; from lightning_gradwatch import load_run; print(len(load_run(sys.argv[1]).profiles))"
        assert int(drawing.run("-c", code, trained).stdout) > 0

    @pytest.mark.parametrize("lacking", ["plotly", "matplotlib", "markdown-it-py", "rich"])
    def test_the_demo_says_first_what_is_missing(self, make, lacking) -> None:
        """Before anything is trained."""
        some = make("report", without=(lacking,))
        done = some.command("demo", "--steps", "2")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.rstrip().endswith(PIP)
        assert not (some.folder / "gradwatch-demo").exists()
