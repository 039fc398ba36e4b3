"""Seeded damage to bundles, run logs and names: an answer or one line that says why not, and nothing that steers a terminal."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradwatch import GradWatch
from lightning_gradwatch.cli import main
from lightning_gradwatch.runlog.portable import KIND
from tests.integration.anomalies import Drawn, train
from tests.runlogs import write_run
from tests.steering import STEERING_NAMES, steering

ODD: list[Any] = [
    *(None, True, -1, 0, 2**70, 0.5, math.nan, -math.inf, "", "auto", "../../elsewhere", "nan"),
    *([], {}, [[]], {"a": 1}, {1: 2}, {KIND: "namedtuple"}, [None], (1, 2, 3), b"bytes"),
    *(torch.zeros(0), torch.ones(3), torch.tensor(2), torch.zeros(2, dtype=torch.uint8), torch.float64, torch.int8),
    *STEERING_NAMES,
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """One of a real training."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    train(folder, Drawn(layers=2, dropout=0.2), GradWatch(dirpath=folder / "run", bundles=1, summary=False))
    return next((folder / "run").glob("bundles/*.pt"))


def change(held: Any, rng: random.Random) -> None:
    """Take out, replace or add something, somewhere in nested dicts and lists."""
    while True:
        keys = list(held) if isinstance(held, dict) else list(range(len(held)))
        below = [key for key in keys if isinstance(held[key], (dict, list)) and held[key]]
        if not below or rng.random() < 0.35:
            break
        held = held[rng.choice(below)]
    key, what = rng.choice(keys), rng.random()
    if what < 0.3:
        del held[key]
    elif what < 0.9 or isinstance(held, list):
        held[key] = copy.deepcopy(rng.choice(ODD))
    else:
        held[rng.choice(STEERING_NAMES)] = held.pop(key)


def answered(capsys, *arguments: object) -> int:
    """The exit code of a command that raised nothing and steered nothing."""
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    assert steering(shown.out + shown.err) == set(), arguments
    assert code in (0, 1, 2)
    assert shown.err.count("\n") == 1 if code == 2 else "Traceback" not in shown.err
    return code


def files_of(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("seed", range(6))
def test_a_changed_bundle_is_answered(bundle, tmp_path, capsys, monkeypatch, seed) -> None:
    """Whatever was taken out of it, put into it, or cut off; and nothing is written where the command runs."""
    monkeypatch.chdir(tmp_path)
    rng, path = random.Random(seed), tmp_path / "changed.pt"
    whole, codes = torch.load(bundle, weights_only=True), set[int]()
    for _ in range(12):
        content = copy.deepcopy(whole)
        for _ in range(rng.choice((1, 1, 3))):
            change(content, rng)
        torch.save(content, path)
        if rng.random() < 0.2:
            held = bytearray(path.read_bytes())
            held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
            path.write_bytes(held[: rng.randrange(len(held))] if rng.random() < 0.5 else held)
        codes.add(answered(capsys, "replay", path, "--module", "tests.integration.anomalies:Drawn"))
        assert files_of(tmp_path) == {path}
    assert codes & {0, 2}


@pytest.mark.parametrize("key", ["dirpath", "bundles", "on_anomaly", "on_event", "figures", "enabled", "nonsense"])
def test_a_bundle_does_not_choose_what_a_replay_does(bundle, tmp_path, capsys, monkeypatch, key) -> None:
    """Of its config only that is taken which says what to look at: nothing is written, and the same event is seen."""
    monkeypatch.chdir(tmp_path)
    content, path = torch.load(bundle, weights_only=True), tmp_path / "changed.pt"
    values = {"dirpath": str(tmp_path / "elsewhere"), "bundles": 5, "on_anomaly": "raise", "enabled": False}
    content["gradwatch"]["config"] |= {key: values.get(key, "os.system"), "dirpath": str(tmp_path / "elsewhere")}
    torch.save(content, path)
    assert answered(capsys, "replay", path, "--module", "tests.integration.anomalies:Drawn") == 0
    assert files_of(tmp_path) == {path}


@pytest.mark.parametrize("seed", range(6))
def test_a_changed_run_log_is_answered(tmp_path, capsys, seed) -> None:
    """By every command that reads one."""
    rng = random.Random(seed)
    folder = write_run(
        tmp_path / rng.choice(STEERING_NAMES), steps=60, explode_at=40, module=rng.choice(STEERING_NAMES)
    )
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for _ in range(6):
        for path, content in whole.items():
            lines = content.splitlines() if path.suffix == ".jsonl" else [content]
            for place in rng.sample(range(len(lines)), min(len(lines), rng.choice((0, 1, 4)))):
                record = json.loads(lines[place])
                change(record, rng)
                lines[place] = json.dumps(record, default=repr).encode()[: rng.choice((None, None, 9))]
            path.write_bytes(b"\n".join(lines) + b"\n")
        for command in (["events"], ["events", "--json"], ["check", "--warnings"], ["watch", "--once"], ["report"]):
            code = main([command[0], str(folder), *command[1:]])
            shown = capsys.readouterr()
            assert steering(shown.out + shown.err) == set()
            assert code in (0, 1, 2)
            assert "Traceback" not in shown.err


@pytest.mark.parametrize("name", STEERING_NAMES)
def test_a_name_on_the_command_line_is_answered(tmp_path, capsys, name) -> None:
    """Files, modules, kinds and options of names that would steer: one line that shows them as they are."""
    for arguments in (
        ["events", tmp_path / name],
        ["events", tmp_path, name],
        ["explain", name],
        ["report", tmp_path, "-o", tmp_path / name / "x"],
        ["check", tmp_path, f"--{name}"],
        ["replay", tmp_path / name, "--module", name],
        ["watch", tmp_path / name, "--once"],
        [name],
    ):
        assert answered(capsys, *arguments) == 2
