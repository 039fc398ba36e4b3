"""The comparison of all ways of clipping, in its quick size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.clipping.field.__main__ import main
from benchmarks.clipping.field.results import Record, best, rows
from benchmarks.clipping.field.rules import OURS, rules
from benchmarks.clipping.field.show import slower
from benchmarks.clipping.field.task import Task, train
from benchmarks.clipping.field.tasks import tasks

QUICK = tasks(quick=True)
RULES = {f"{rule.family} {rule.setting}": rule for rule in rules()}


@pytest.mark.parametrize("name", QUICK)
def test_every_problem_runs(name: str) -> None:
    """A few updates without clipping end with a figure, whatever it is."""
    run = train(QUICK[name], RULES["none "], 500)
    assert not math.isnan(run.loss) or run.lost
    assert run.clipped == 0


@pytest.mark.parametrize("name", RULES)
def test_every_rule_runs(name: str) -> None:
    """On the problem whose gradients explode at the first step."""
    run = train(QUICK["VAE, GRU, rate 0.03"], RULES[name], 500)
    assert 0 <= run.clipped <= 1


def test_a_comparison_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is in the file is not run again, but for a family that is named; the picture is drawn."""
    file, picture = tmp_path / "field.jsonl", tmp_path / "field.svg"
    given = ["--quick", "--results", str(file), "--seeds", "500", "--tuning-seeds", "501", "--tasks", "sketches"]
    main([*given, "--picture", str(picture)])
    lines = file.read_text().splitlines()
    settings = sum(1 for rule in rules() if rule.family not in ("none", OURS))
    assert len(lines) == settings + len({rule.family for rule in rules()})
    assert picture.stat().st_size > 1000
    first = capsys.readouterr().out
    main(given)
    assert file.read_text().splitlines() == lines
    assert capsys.readouterr().out == first
    main([*given, "--again", OURS])
    assert sorted(file.read_text().splitlines()) == sorted(lines)


def test_a_run_is_lost_or_solved_by_its_figure() -> None:
    """Solved at the first look that is good enough, when it stops; lost where it ends too high or with no number."""

    def start() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(network.weight, 1.0)
        return network, torch.optim.SGD(network.parameters(), 0.1)

    def task(rate: float, **more: float) -> Task:
        return Task(
            "weight", 20, start, lambda n: rate * n.weight.sum(), lambda n: float(n.weight), lost=0.95, check=5, **more
        )  # type: ignore[arg-type]

    solved = train(task(1.0, solved=0.3), RULES["none "], 0)
    assert (solved.solved, solved.lost) == (10, False)
    assert solved.loss == pytest.approx(0.0, abs=1e-6)
    lost = train(task(-1.0), RULES["none "], 0)
    assert (lost.solved, lost.lost) == (None, True)
    assert train(task(math.inf), RULES["none "], 0).loss == math.inf


def record(family: str, loss: float, lost: bool = False, solved: int | None = None, setting: str = "") -> Record:
    return Record("full", "task", family, setting, 0, loss, lost, solved, 0.0)


def test_the_best_loses_least_and_solves_soonest() -> None:
    """Then it is the one that ends lowest."""
    compared = rows(
        [
            record("a", 0.1, lost=True),
            record("b", 0.5),
            record("c", 0.4, solved=300),
            record("d", 0.6, solved=200),
            record("e", 0.7),
        ]
    )
    assert best(compared).family == "d"
    assert best([row for row in compared if row.family in "abe"]).family == "b"
    behind = {row.family: slower(row, compared) for row in compared}
    assert behind == pytest.approx({"a": 0.0, "b": 1 / 3, "c": 0.0, "d": 2 / 3, "e": 1.0})


def test_seeds_that_tune_do_not_report(tmp_path: Path) -> None:
    """Of a family's settings one alone is run on the reporting seeds."""
    file = tmp_path / "field.jsonl"
    main(["--quick", "--results", str(file), "--seeds", "500", "--tuning-seeds", "501", "--tasks", "sketches"])
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for family in {rule.family for rule in rules()}:
        assert sum(r["family"] == family and r["seed"] == 500 for r in records) == 1
