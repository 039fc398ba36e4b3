"""``gradwatch check --against`` and ``gradwatch diagnose``: one run held against another, and all of one in a document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch.cli import main
from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.runlog import RunLogWriter, load_run
from tests.runlogs import profile

LIMITS = {"optimizer": 0, "verdict": "step limiter", "sentence": "It acted on 9 of 9 steps."}
NET = {"optimizer": 0, "verdict": "safety net", "sentence": "It acted on 1 of 9 steps."}
OPEN = {"optimizer": 0, "verdict": "undecided", "sentence": "It acted on 2 of 2 steps."}
INPUT = Event(EventKind.NONFINITE_INPUT, 3, module="rnn", value=float("nan"))


def run(folder: Path, horizon: int, *, timesteps: int = 60, events: tuple[Event, ...] = (), **meta: Any) -> Path:
    """A run log whose lagged gradient falls under 1 % after ``horizon`` timesteps."""
    module = meta.pop("module", "rnn")
    writer = RunLogWriter(folder, header={})
    writer.meta({"run_id": folder.name, **meta})
    for step in range(0, 400, 50):
        writer.profile(profile(step, module=module, timesteps=timesteps, rate=-4.6 / (horizon - 0.5)))
    for event in events:
        writer.event(event)
    writer.close()
    return folder


@pytest.mark.parametrize(
    ("now", "then", "options", "code", "says"),
    [
        ({"horizon": 30}, {"horizon": 30}, [], 0, "ok: nothing is worse"),
        ({"horizon": 10}, {"horizon": 30}, [], 1, "rnn, layer 0: the horizon is 10 of 60 timesteps; it was 30 of 60"),
        ({"horizon": 25}, {"horizon": 30}, [], 0, "ok"),
        ({"horizon": 25}, {"horizon": 30}, ["--horizon-tolerance", "0.1"], 1, "it was 30"),
        ({"horizon": 10}, {"horizon": 30}, ["--horizon-tolerance", "0.8"], 0, "ok"),
        ({"horizon": 4}, {"horizon": 6}, ["--horizon-tolerance", "0"], 0, "ok"),
        ({"horizon": 45}, {"horizon": 30}, [], 0, "ok"),
        ({"horizon": 30}, {"horizon": 300}, [], 1, "it was at least 59 of 60 timesteps"),
        ({"horizon": 300, "timesteps": 20}, {"horizon": 50}, [], 0, "not compared: rnn, layer 0: the horizon was 50"),
        ({"horizon": 30, "clipping": [LIMITS]}, {"horizon": 30, "clipping": [NET]}, [], 1, "it was: safety net"),
        ({"horizon": 30, "clipping": [LIMITS]}, {"horizon": 30, "clipping": [LIMITS]}, [], 0, "ok"),
        ({"horizon": 30, "clipping": [LIMITS]}, {"horizon": 30, "clipping": [OPEN]}, [], 0, "ok: nothing is worse"),
        ({"horizon": 30, "clipping": [LIMITS]}, {"horizon": 30, "clipping": [OPEN]}, [], 0, "it was: undecided"),
        ({"horizon": 30, "clipping": [LIMITS]}, {"horizon": 30}, [], 0, "not compared: The other run says nothing of"),
        ({"horizon": 30, "events": (INPUT,)}, {"horizon": 30}, [], 1, "NONFINITE_INPUT at step 3 is new."),
        ({"horizon": 30, "events": (INPUT,)}, {"horizon": 30, "events": (INPUT,)}, [], 0, "ok"),
        ({"horizon": 30, "events": (INPUT,)}, {"horizon": 30}, ["--allow", "nonfinite_input"], 0, "ok"),
    ],
)
def test_only_what_is_worse_fails(tmp_path, capsys, now, then, options, code, says) -> None:
    """A shorter horizon beyond the tolerance, clipping that has come to limit the steps, a new critical event."""
    paths = str(run(tmp_path / "now", **now)), str(run(tmp_path / "then", **then))
    assert main(["check", paths[0], "--against", paths[1], *options]) == code
    assert says in capsys.readouterr().out


def test_a_run_that_measured_nothing_is_told_as_such(tmp_path, capsys) -> None:
    """Not as one of another model; and it does not pass."""
    base = run(tmp_path / "base", 30)
    empty = tmp_path / "empty"
    writer = RunLogWriter(empty, header={})
    writer.meta({"run_id": "empty"})
    writer.event(Event(EventKind.NOT_OBSERVED, 0, module="rnn"))
    writer.close()
    for one, other in ((empty, base), (base, empty)):
        assert main(["check", str(one), "--against", str(other)]) == 2
        said = capsys.readouterr().err
        assert "The runs must have a measured layer in common" in said
        assert "A module without a layer was not measured there." in said
        assert "one model" not in said


def test_a_module_that_is_gone_is_said(tmp_path, capsys) -> None:
    """What BASE has and the run has not cannot be compared; with no module in common nothing can, which is a mistake."""
    now, then = run(tmp_path / "now", 30), run(tmp_path / "then", 30)
    writer = RunLogWriter(then, header={})
    writer.profile(profile(0, module="other"))
    writer.close()
    assert main(["check", str(now), "--against", str(then)]) == 0
    assert "not compared: other, layer 0 is not in this run." in capsys.readouterr().out
    strange = run(tmp_path / "strange", 30, module="encoder")
    assert main(["check", str(strange), "--against", str(now)]) == 2
    assert "The runs must have a module in common; found encoder, layer 0 in" in capsys.readouterr().err


def test_a_module_that_is_new_is_said(tmp_path, capsys) -> None:
    """What a run has that the other has not, be it all, is not passed off as no worse."""
    now = str(run(tmp_path / "now", 30))
    writer = RunLogWriter(tmp_path / "empty", header={})
    writer.meta({"run_id": "empty"})
    writer.close()
    assert main(["check", now, "--against", str(tmp_path / "empty")]) == 0
    assert "not compared: rnn, layer 0 is not in the other run." in capsys.readouterr().out


@pytest.mark.parametrize("value", ["1", "-0.1", "a third", "nan"])
def test_a_tolerance_is_a_share(tmp_path, capsys, value: str) -> None:
    """Anything else is one line and exit code 2."""
    assert main(["check", str(tmp_path), "--against", str(tmp_path), f"--horizon-tolerance={value}"]) == 2
    assert "must be a share" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--horizon-tolerance=0.5", "--horizon-tolerance=0", "--allow=DIVERGED"])
def test_what_belongs_to_a_comparison_is_refused_without_one(tmp_path, capsys, option: str) -> None:
    """It would be passed over in silence."""
    assert main(["check", str(run(tmp_path / "run", 10)), option]) == 2
    assert f"`{option.partition('=')[0]}` belongs to a comparison. Add --against BASE" in capsys.readouterr().err


def test_the_diagnosis_is_one_document(tmp_path, capsys) -> None:
    """Verdicts, clipping, events and advice, with places, evidence and remedies; strict JSON."""
    second = Event(EventKind.NONFINITE_INPUT, 9, module="rnn", value=float("inf"))
    vanishing = Event(EventKind.VANISHING_HIDDEN_GRADIENT, 50, module="rnn", layer=0, direction="forward", value=10.0)
    folder = run(tmp_path / "run", 10, events=(INPUT, second, vanishing), clipping=[LIMITS])
    assert main(["diagnose", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["format_version"] == "1.0"
    assert found["worst"] == "critical"
    assert found["clipping"] == load_run(folder).clipping
    first = found["events"][0]
    assert (first["kind"], first["count"], first["first_step"], first["last_step"]) == ("NONFINITE_INPUT", 2, 3, 9)
    assert first["evidence"]["value"] == "nan"
    assert first["explain"] == "gradwatch explain nonfinite-input"
    (verdict,) = found["verdicts"]
    assert (verdict["place"], verdict["verdict"], verdict["horizon"]) == ("rnn, layer 0", "vanishing", 10)
    assert vanishing.remedy in verdict["remedies"]
    assert [advice["kind"] for advice in found["advice"]] == ["NONFINITE_INPUT", "VANISHING_HIDDEN_GRADIENT"]


def test_the_diagnosis_names_each_field_that_the_reference_does(tmp_path, capsys) -> None:
    """And the other way round."""
    folder = run(tmp_path / "run", 10, events=(INPUT,))
    assert main(["diagnose", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    page = (Path(__file__).parents[3] / "docs" / "reference" / "diagnosis.md").read_text("utf-8")
    for part in (found, found["run"], found["verdicts"][0], found["events"][0], found["advice"][0]):
        assert [name for name in part if f"`{name}`" not in page] == []


def test_the_diagnosis_in_words_says_the_same(tmp_path, capsys) -> None:
    """A line for each verdict, clipping, event and remedy."""
    folder = run(tmp_path / "run", 10, events=(INPUT,), clipping=[LIMITS])
    assert main(["diagnose", str(folder)]) == 0
    said = capsys.readouterr().out
    for words in (
        "the worst is critical",
        "rnn, layer 0: vanishing.",
        "Clipping, optimizer 0: step limiter. It acted on",
    ):
        assert words in said
    assert f"What to do about NONFINITE_INPUT (rnn): {INPUT.remedy}" in said


def test_an_empty_run_has_a_diagnosis(tmp_path, capsys) -> None:
    """Nothing was recorded, and nothing is made up."""
    RunLogWriter(tmp_path, header={}).meta({"run_id": "empty"})
    assert main(["diagnose", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["worst"], found["verdicts"], found["events"], found["clipping"]) == (None, [], [], [])


@pytest.mark.parametrize("command", [["diagnose", "{}", "--json"], ["check", "{}", "--against", "{}"]])
def test_no_extra_is_needed(tmp_path, command: list[str]) -> None:
    """Neither rich nor plotly nor pandas nor torch is imported."""
    folder = run(tmp_path / "run", 30)
    words = [word.format(folder) for word in command]
    code = (
        "import sys\n"
        "for name in ('rich', 'plotly', 'pandas', 'markdown_it', 'matplotlib', 'torch', 'lightning'):\n"
        "    sys.modules[name] = None\n"
        "from lightning_gradwatch.cli import main\n"
        f"sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
