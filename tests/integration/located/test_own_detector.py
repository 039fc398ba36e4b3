"""Detectors of a user's own, given to GradWatch: what they say is recorded like any other event, and their faults harm nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gradwatch import Detector, Event, EventKind, GradWatch, Moment, Profile, load_run
from tests.asserts import assert_identical
from tests.models import TinyLanguageModel, sentences, trainer

KIND = EventKind.EXPLODING_HIDDEN_GRADIENT


class Counts:
    """Tells every ``every``-th profile of h in the lowest layer, and at the end how many there were."""

    def __init__(self, every: int = 2) -> None:
        self.every = every
        self.seen: list[tuple[int, float | None]] = []

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        if profile.layer or not profile.primary:
            return None
        self.seen.append((moment.step, moment.loss))
        if len(self.seen) % self.every:
            return None
        place = {"module": profile.module, "layer": profile.layer, "direction": profile.direction}
        value = float(len(self.seen))
        return moment.event(KIND, **place, value=value, threshold=1.0, message="So it is.", remedy="Leave it.")

    def finish(self, moment: Moment) -> list[Event]:
        return [moment.event(EventKind.DIVERGED, message=f"{len(self.seen)} seen.", value=1.0, threshold=2.0)]


class Fails(Counts):
    """Fails in one way or another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def __call__(self, profile: Profile, moment: Moment) -> Any:
        if self.way == "raises":
            raise ZeroDivisionError("the user's own")
        return {"no event": "text", "no record": moment.event(KIND, value=np.float32(1), threshold=1.0)}[self.way]

    def finish(self, moment: Moment) -> list[Event]:
        raise ZeroDivisionError("the user's own")


def fit(folder: Path, *detectors: Detector, **options: Any) -> tuple[GradWatch, Any]:
    watch = GradWatch(every_n_steps=2, dirpath=folder / "run", summary=False, detectors=list(detectors), **options)
    run = trainer(folder, [watch], max_steps=5)
    torch.manual_seed(0)
    run.fit(TinyLanguageModel(), sentences(64))
    return watch, run


def test_what_it_says_is_an_event_in_the_run_log(tmp_path: Path) -> None:
    """The record holds what the detector said, and when; the detector that was given stays as it was."""
    given = Counts()
    heard: list[Event] = []
    watch, _ = fit(tmp_path, given, on_event=heard.append)
    records = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    said, last = (record for record in records if record.get("message") in ("So it is.", "3 seen."))
    expected = {
        "kind": "EXPLODING_HIDDEN_GRADIENT",
        "severity": "warning",
        "step": 2,
        "epoch": 0,
        "batch_idx": 2,
        "rank": 0,
        "module": "rnn",
        "layer": 0,
        "direction": "forward",
        "state": None,
        "timestep": None,
        "sequence": None,
        "parameter": None,
        "value": 2.0,
        "threshold": 1.0,
        "action": None,
        "message": "So it is.",
        "remedy": "Leave it.",
    }
    assert {name: said[name] for name in expected} == expected
    assert (last["kind"], last["step"]) == ("DIVERGED", 4)
    assert [event.message for event in watch.events] == [event.message for event in heard] == ["So it is.", "3 seen."]
    assert len(load_run(tmp_path / "run").event_records) == 2
    assert given.seen == []


def test_the_moment_knows_the_loss(tmp_path: Path) -> None:
    """It is that of the sampled step, as the run log has it."""
    given = Counts()
    kept: list[Counts] = []

    class Kept(Counts):
        def __deepcopy__(self, memo: Any) -> Counts:
            kept.append(given)
            return given

    fit(tmp_path, Kept())
    records = load_run(tmp_path / "run").profile_records
    assert kept[0].seen == [
        (record["step"], record["loss"]) for record in records if not record["layer"] and record["state"] == "h"
    ]


@pytest.mark.parametrize(
    ("way", "error"), [("raises", "ZeroDivisionError"), ("no event", "TypeError"), ("no record", "TypeError")]
)
def test_its_error_is_one_warning(tmp_path: Path, way: str, error: str) -> None:
    """Nothing else is lost by it, neither what the others say nor the training to the bit."""
    with pytest.warns(UserWarning, match=f"The detector Fails failed .{error}") as caught:
        watch, run = fit(tmp_path / "fails", Fails(way), Counts())
    assert sum("detector" in str(warning.message) for warning in caught) == 1
    assert [event.message for event in watch.events] == ["So it is.", "3 seen."]
    bare = trainer(tmp_path, [], max_steps=5)
    torch.manual_seed(0)
    bare.fit(TinyLanguageModel(), sentences(64))
    assert_identical(run.lightning_module.state_dict(), bare.lightning_module.state_dict())


def test_each_fit_begins_with_a_fresh_one(tmp_path: Path) -> None:
    """A second fit of one instance counts from the start."""
    watch, _ = fit(tmp_path, Counts())
    first = [replace(event, epoch=None) for event in watch.events]
    trainer(tmp_path, [watch], max_steps=5).fit(TinyLanguageModel(), sentences(64))
    assert [replace(event, epoch=None) for event in watch.events] == first


@pytest.mark.parametrize("found", [len, Counts, "vanishing", lambda profile, moment: None])
def test_what_is_no_detector_is_refused(found: Any) -> None:
    """A class, a name and a function without ``finish`` are none."""
    with pytest.raises(
        ValueError, match=r"`detectors` must be objects with .* found .* See lightning_gradwatch.Detector"
    ):
        GradWatch(detectors=[found])


def test_it_is_built_from_yaml(tmp_path: Path) -> None:
    """LightningCLI builds it with its arguments, inside the callback."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    detector = {"class_path": f"{__name__}.Counts", "init_args": {"every": 3}}
    callback = {"class_path": "lightning_gradwatch.GradWatch", "init_args": {"detectors": [detector]}}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"trainer": {"logger": False, "callbacks": [callback]}}))  # JSON is YAML
    cli = LightningCLI(TinyLanguageModel, run=False, args=["--config", str(config)], save_config_callback=None)
    (built,) = [one for one in cli.trainer.callbacks if isinstance(one, GradWatch)]
    (own,) = built.detectors
    assert isinstance(own, Counts)
    assert own.every == 3
