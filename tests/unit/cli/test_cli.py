"""The command: exit codes, one line for a mistake, and a quick start."""

# Over 300 lines: one command, a few lines for each of its subcommands.
from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

from lightning_gradwatch.cli import main
from lightning_gradwatch.events import Event, EventKind, Severity
from lightning_gradwatch.runlog import RunLogWriter, load_run
from lightning_gradwatch.runlog.bundles import write_bundle
from tests.bundles import whole_bundle
from tests.runlogs import write_run


def test_events_lists_what_fits(tmp_path, capsys):
    """Kind, severity and module narrow the list; --json gives the records themselves."""
    write_run(tmp_path, explode_at=100, start=-0.5, end=-0.5)

    def kinds(*options: str) -> list[str]:
        assert main(["events", str(tmp_path), "--json", *options]) == 0
        return [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]

    every = kinds()
    assert {"GRADIENT_CLIPPED", "STEP_SKIPPED", "VANISHING_HIDDEN_GRADIENT"} == set(every)
    assert kinds("--kind", "step_skipped") == ["STEP_SKIPPED"] * 2
    assert kinds("--kind", "step-skipped") == ["STEP_SKIPPED"] * 2  # as ``gradwatch explain`` has it
    assert kinds("--severity", "info") == every
    assert kinds("--severity", "critical") == []
    assert kinds("--severity", "warning") == [kind for kind in every if kind != "GRADIENT_CLIPPED"]
    assert set(kinds("--module", "model.*")) == {"VANISHING_HIDDEN_GRADIENT"}
    assert kinds("--module", "nothing") == []


def test_a_filter_that_matches_nothing_says_so(tmp_path, capsys):
    """No events, and none that fits, are not the same."""
    folder = write_run(tmp_path, explode_at=100)
    count = len(load_run(folder).event_records)
    assert main(["events", str(folder), "--kind", "not-observed"]) == 0
    assert capsys.readouterr().out == f"None of the {count} events matches.\n"


def test_clipped_steps_are_one_row_unless_asked_for(tmp_path, capsys):
    """What follows each other is folded, with how many, when and the largest norm."""
    writer = RunLogWriter(tmp_path, header={})
    for step in (4, 9, 225):
        writer.event(Event(EventKind.GRADIENT_CLIPPED, step, value=step / 300, threshold=0.01, action="clipped"))
    writer.event(Event(EventKind.STEP_SKIPPED, 226, value=math.nan))
    writer.event(Event(EventKind.GRADIENT_CLIPPED, 230, value=0.5, threshold=0.01, action="clipped"))
    writer.close()

    def shown(*options: str) -> str:
        assert main(["events", str(tmp_path), *options]) == 0
        return " ".join(capsys.readouterr().out.split())

    folded = shown()
    assert "4 GRADIENT_CLIPPED Clipped 3 times, steps 4 to 225, norms up to 0.75." in folded
    assert "230 GRADIENT_CLIPPED The gradient norm 0.5 was clipped" in folded
    assert shown("--kind", "gradient-clipped").count("was clipped to") == 4


def test_events_prints_a_table(tmp_path, capsys):
    """Without --json the verdict and the events are shown to a person."""
    write_run(tmp_path, explode_at=100)
    assert main(["events", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "STEP_SKIPPED" in shown
    assert "not finite" in shown


def test_report_writes_the_page_and_says_where(tmp_path, capsys):
    """By default it lies in the run's folder; -o names another place; several runs share a page."""
    first, second = write_run(tmp_path / "a", steps=40), write_run(tmp_path / "b", steps=40)
    assert main(["report", str(first)]) == 0
    assert capsys.readouterr().out.strip() == str(first / "report.html")
    assert (first / "report.html").stat().st_size > 1_000_000
    assert main(["report", str(first), str(second), "-o", str(tmp_path / "both.html")]) == 0
    assert "<h3>b</h3>" in (tmp_path / "both.html").read_text()


def test_check_tells_by_its_exit_code(tmp_path, capsys):
    """0 without a critical event, 1 with one, and of warnings too with --warnings; one line says which was the first."""

    def check(folder: str, *options: str) -> tuple[int, str]:
        code, said = main(["check", str(tmp_path / folder), *options]), capsys.readouterr()
        assert said.out.count("\n") == 1
        return code, said.out

    write_run(tmp_path / "quiet", steps=3)
    write_run(tmp_path / "warned", steps=40, explode_at=20)
    write_run(tmp_path / "broken", steps=40)
    writer = RunLogWriter(tmp_path / "broken", header={}, rank=1)
    writer.event(Event(EventKind.NONFINITE_LOSS, 7, rank=1, value=math.nan, message="the loss\x1b[2J is\nNaN"))
    writer.close()
    ended = Event(EventKind.EXPLODING_GRADIENT, 9, value=9.0, threshold=1.0, action="ended", severity=Severity.INFO)
    writer = RunLogWriter(tmp_path / "quiet", header={}, rank=1)
    writer.event(ended)
    writer.close()
    skipping = RunLogWriter(tmp_path / "skipping", header={})
    for step in (3, *range(10, 28)):
        skipping.event(Event(EventKind.STEP_SKIPPED, step, value=math.nan))
    skipping.close()
    assert check("skipping") == (0, "ok: 0 critical events, 2 warning events (19 steps skipped)\n")
    assert check("quiet", "--warnings") == (0, "ok: 0 critical events, 0 warning events\n")
    assert check("warned") == (0, "ok: 0 critical events, 2 warning events\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text("{}")
    assert check("empty") == (0, "ok: 0 critical events, 0 warning events; nothing was recorded\n")
    code, said = check("warned", "--warnings")
    assert code == 1
    assert "first at step 20: STEP_SKIPPED" in said
    code, said = check("broken")
    assert code == 1
    assert said.startswith("failed: 1 critical event,")
    assert "first at step 7: NONFINITE_LOSS, the loss\\x1b[2J is NaN" in said


def test_watch_prints_one_picture(tmp_path, capsys):
    """With --once, and where there is no terminal, it prints what there is and ends."""
    write_run(tmp_path, explode_at=100)
    for options in (["--once"], []):
        assert main(["watch", str(tmp_path), *options]) == 0
        shown = capsys.readouterr().out
        assert "GradWatch step 599" in shown
        assert "not finite" in shown
        assert "STEP_SKIPPED" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["events", "{}/nowhere"], "found nothing at"),
        (["report", "{}/empty"], "found neither run.json nor"),
        (["report", "{}/run", "-o", "{}/no/such/folder.html"], "`--output` must be a file that can be written"),
        (["events", "{}/run", "--kind", "NONSENSE"], "invalid choice: 'NONSENSE'"),
        (["events", "{}/run", "{}/run"], "unrecognized arguments"),
        (["check", "{}/nowhere"], "found nothing at"),
        (["watch", "{}/nowhere", "--once"], "found nothing at"),
        (["watch", "{}/run/run.json"], "found a file at"),
        (["watch", "{}/run", "--interval", "0"], "must be a number of seconds > 0; found '0'"),
        (
            ["replay", "{}/nowhere", "--module", "tests.models:TinyLanguageModel"],
            "`BUNDLE` must be a bundle's file; found nothing",
        ),
        (["replay", "{}/run", "--module", "tests.models:TinyLanguageModel"], "found a folder"),
        (["replay", "{}/run/run.json", "--module", "tests.models:TinyLanguageModel"], "cannot be read as a bundle"),
        (["replay", "{}/bundle.pt"], "required: --module"),
        (["replay", "{}/bundle.pt", "--module", "nonsense"], "`--module` must be MODULE:CLASS"),
        (["replay", "{}/bundle.pt", "--module", "no_such_module:Model"], "import failed (ModuleNotFoundError"),
        (["replay", "{}/bundle.pt", "--module", "{}/train.py:Model"], "import failed (FileNotFoundError"),
        (["replay", "{}/bundle.pt", "--module", "{}/broken.py:Model"], "import failed (SyntaxError"),
        (["replay", "{}/bundle.pt", "--module", "tests.models:Nothing"], "has no 'Nothing'"),
        (["replay", "{}/bundle.pt", "--module", "tests.models:WORDS"], "must name a LightningModule's class"),
        (["replay", "{}/bundle.pt", "--module", "tests.models:sentences"], "made a DataLoader"),
        (
            ["replay", "{}/bundle.pt", "--module", "tests.models:TinyLanguageModel", "--args", "[1]"],
            "`--args` must be a JSON object",
        ),
        (
            ["replay", "{}/bundle.pt", "--module", "tests.models:TinyLanguageModel", "--args", "x"],
            "`--args` must be a JSON object",
        ),
        (
            ["replay", "{}/bundle.pt", "--module", "tests.models:TinyLanguageModel", "--args", '{{"hidden": 3}}'],
            "do not fit",
        ),
        (
            ["replay", "{}/bundle.pt", "--module", "tests.models:TinyLanguageModel", "--args", '{{"nothing": 3}}'],
            "`--args` gives 'nothing', but TinyLanguageModel takes cell, layers",
        ),
        (["replay", "{}/bundle.pt", "--module", "{}/raises.py:make"], "make could not be made (KeyError: 'my own')"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, words):
    """What was wrong and what to do, no usage block, no traceback."""
    write_run(tmp_path / "run", steps=3)
    (tmp_path / "empty").mkdir()
    if "replay" in arguments:
        write_bundle(tmp_path / "bundle.pt", whole_bundle())
        (tmp_path / "raises.py").write_text("def make():\n    raise KeyError('my own')\n")
        (tmp_path / "broken.py").write_text("class Model(:\n")
    assert main([argument.format(tmp_path) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_damaged_lines_are_said(tmp_path, capsys):
    """The list is complete but for the damaged line, and the user is told."""
    write_run(tmp_path, steps=30)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "STEP')
    assert main(["events", str(tmp_path), "--json"]) == 0
    assert "1 torn or malformed line was passed over" in capsys.readouterr().err


def test_help_and_version_succeed(capsys):
    """They print to standard output and exit with 0."""
    for option in ("--help", "--version"):
        assert main([option]) == 0
        assert "gradwatch" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["events", "--json"], ["check"]])
def test_the_start_loads_nothing_heavy(tmp_path, arguments):
    """What is for scripts imports neither torch nor Lightning nor what draws; as a module it is the same command."""
    write_run(tmp_path, steps=3)
    command = [sys.executable, "-X", "importtime", "-m", "lightning_gradwatch", *arguments, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "lightning_gradwatch" in loaded
    heavy = {"torch", "lightning", "pytorch_lightning", "numpy", "pandas", "matplotlib", "plotly", "rich"}
    assert not loaded & heavy


def test_a_closed_pipe_is_no_error(tmp_path):
    """`gradwatch events RUN --json | head -1` ends quietly."""
    write_run(tmp_path, steps=60_000, every=60_000, timesteps=2)
    command = f'"{sys.executable}" -m lightning_gradwatch events "{tmp_path}" --json | head -1'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_explain_prints_the_page_of_a_kind(capsys):
    """By any spelling of its name; without one all kinds; a wrong name is one line that names the right one."""
    for name in ("VANISHING_HIDDEN_GRADIENT", "vanishing-hidden-gradient"):
        assert main(["explain", name]) == 0
        shown = capsys.readouterr().out
        assert "What to do" in shown
        assert "](" not in shown  # no link to what is not at hand
    assert main(["explain"]) == 0
    shown = capsys.readouterr().out
    assert all(kind.page in shown for kind in EventKind)
    assert main(["explain", "vanishing"]) == 2
    assert "Did you mean VANISHING_HIDDEN_GRADIENT?" in capsys.readouterr().err
    assert main(["explain", "--example"]) == 2


def test_explain_prints_a_script_that_stands_alone(capsys):
    """With its imports, so that it can be run as it is."""
    assert main(["explain", "not-observed", "--example"]) == 0
    script = capsys.readouterr().out
    compile(script, "example", "exec")
    assert script.startswith("import lightning.pytorch as pl\n")


def test_events_lead_to_their_pages(tmp_path, capsys):
    """Behind each remedy stands the command that says more."""
    write_run(tmp_path, explode_at=100)
    main(["events", str(tmp_path)])
    assert "gradwatch explain step-skipped" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", [EventKind.STEP_SKIPPED, EventKind.GRADIENT_CLIPPED])
@pytest.mark.parametrize("times", [2, 18])
def test_successive_steps_of_one_kind_are_one_row(tmp_path, capsys, kind, times):
    """Skipped ones as clipped ones; those that were dealt with in another way, or are graver, stand apart."""
    writer = RunLogWriter(tmp_path, header={})
    for step in range(times):
        writer.event(Event(kind, step, value=math.nan, threshold=1.0, action="skipped"))
    for step in range(times, 2 * times):
        writer.event(Event(kind, step, value=2.0, threshold=1.0, action="rolled back"))
    writer.event(Event(kind, 2 * times, value=math.nan, threshold=1.0, action="stopped", severity=Severity.CRITICAL))
    writer.close()
    assert main(["events", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Skipped {times} times, steps 0 to {times - 1}. --kind" in shown
    assert f"Rolled back {times} times, steps {times} to {2 * times - 1}," in shown
    assert shown.count(f"{kind} ") - shown.count(f"--kind {kind} ") == 3


def test_the_newest_run_below_a_folder_is_taken(tmp_path, capsys, monkeypatch):
    """Named by a folder above it, or not at all; standard error says which it is, and which others there are."""
    runs = [write_run(tmp_path / f"version_{n}" / "gradwatch", steps=3) for n in range(8)]
    for age, run in zip((9, 1, 2, 3, 4, 5, 6, 7), runs, strict=True):
        for file in run.iterdir():
            os.utime(file, (1e9 - age, 1e9 - age))
    monkeypatch.chdir(tmp_path)
    for arguments in (["events"], ["check", str(tmp_path)], ["watch", "--once"], ["report"]):
        assert main(arguments) == 0
        shown = capsys.readouterr()
        assert "version_1/gradwatch', the newest of 8 runs; the others are" in shown.err
        assert shown.err.count("gradwatch'") + shown.err.count("gradwatch,") >= 1
        assert "2 more" in shown.err
    assert (runs[1] / "report.html").is_file()
    assert main(["events", "--json", str(runs[4].parent)]) == 0
    assert capsys.readouterr().err == ""  # it was named


@pytest.mark.parametrize("there", [[], ["notes.txt"], ["lightning_logs/version_0/metrics.csv"]])
def test_where_there_is_no_run_that_is_said(tmp_path, capsys, monkeypatch, there):
    """Whatever else lies in the folder, which is named."""
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    for arguments in (["events"], ["check", str(tmp_path)], ["watch", "--once"], ["report"]):
        assert main(arguments) == 2
        assert "found neither run.json nor profiles.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("meta", [{"ended": 1e9}, {"ended": 5}, {"ended": None}, {"ended": "soon"}, {}])
def test_watch_says_that_a_run_has_ended(tmp_path, capsys, meta):
    """And only where the fit ended: one that was killed says nothing of its end."""
    folder = write_run(tmp_path, steps=3)
    RunLogWriter(folder, header={}).meta(meta)
    assert main(["watch", str(folder)]) == 0
    assert ("This run has ended" in capsys.readouterr().out) is isinstance(meta.get("ended"), (int, float))


def test_a_terminal_of_few_letters_is_served(tmp_path):
    """What it lacks is replaced."""
    write_run(tmp_path, steps=30, start=-0.01, end=-0.01)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "lightning_gradwatch", "events", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "? 39 of 40" in done.stdout
