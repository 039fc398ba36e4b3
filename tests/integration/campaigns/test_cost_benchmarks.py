"""The benchmarks of what watching costs, at tiny sizes: that they run, the part that is meant for a GPU too."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.cost import __main__ as all_parts
from benchmarks.cost import wall

BY_WANDB = next(name for name, variant in wall.VARIANTS.items() if variant.wandb)


def test_the_wall_clock_runs_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Each variant of each module has a line with its time, and its ratio to the bare run."""
    wall.main(["--device", "cpu", "--quick", "--without", BY_WANDB])
    shown = capsys.readouterr().out
    for name in wall.VARIANTS:
        found = re.findall(rf"^ *{re.escape(name)} +([\d.]+) ms +([\d.]+) ", shown, re.MULTILINE)
        assert len(found) == (0 if name == BY_WANDB else 2)
        assert all(float(number) > 0 for pair in found for number in pair)


def test_the_mean_at_the_defaults_holds_one_sampled_step() -> None:
    """It is over as many steps as lie between two samples."""
    assert wall.VARIANTS["GradWatch at its defaults"].least_steps == wall.GradWatch().every_n_steps


def test_a_variant_that_is_lost_is_said() -> None:
    """Without a bare run there is no ratio, and what has no time is said not to fit."""
    lost, kept = wall.lines({"bare": [], "GradWatch, every step": [0.5, 0.7]})
    assert lost.split() == ["bare", "does", "not", "fit", "into", "memory"]
    assert kept.split()[-2:] == ["600.00", "ms"]


def test_one_command_runs_all_that_the_machine_can(capfd: pytest.CaptureFixture[str]) -> None:
    """What needs a GPU is left out in a line where there is none."""
    assert all_parts.main(["--quick", "--only", "launches", "clip-step-gpu"]) == 0
    shown = capfd.readouterr().out
    assert "$ python -m benchmarks.cost.launches --timesteps 8 16" in shown
    assert len(re.findall(r"^ +(?:RNN|LSTM|GRU) +(?:8|16) ", shown, re.MULTILINE)) == 6
    assert ("there is no CUDA device" in shown) is not torch.cuda.is_available()


def test_a_part_that_fails_is_known(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The others run all the same, and the exit code says it."""
    broken = all_parts.Part("Broken", "launches", "--nonsense", "--nonsense")
    monkeypatch.setattr(all_parts, "PARTS", {"broken": broken, "launches": all_parts.PARTS["launches"]})
    assert all_parts.main(["--quick"]) == 1
    shown = capfd.readouterr().out
    assert shown.index("Broken") < shown.index("timesteps") < shown.index("Failed: broken")
