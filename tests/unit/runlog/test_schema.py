"""Each field of the run log is written, read, checked and documented under one name."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gradwatch import AdaptiveClip, GradWatch
from lightning_gradwatch.audit import ClippingSummary
from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.runlog import load_run, records
from lightning_gradwatch.runlog.schema import (
    ClippingRecord,
    EventRecord,
    ProfileRecord,
    StepRecord,
    is_primary,
)
from tests.runlogs import profile


class RunRecord(TypedDict, total=False):
    """The fields of run.json, which is rewritten as a whole."""

    format_version: str
    run_id: str
    versions: dict[str, Any]
    config: dict[str, Any]
    model: str | None
    modules: dict[str, Any]
    clipping: list[ClippingRecord]
    truncation: list[dict[str, Any]]
    ended: float | None


RECORDS = {
    "profiles.jsonl": ProfileRecord,
    "events.jsonl": EventRecord,
    "steps.jsonl": StepRecord,
    "run.json": RunRecord,
}
REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "run-log.md"


class Reader(pl.LightningModule):
    """A recurrent network whose third step has no finite loss."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3, batch_first=True)

    def training_step(self, batch, batch_idx):
        return self.rnn(batch)[0].square().mean() * (float("nan") if batch_idx == 2 else 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run log of a training with both callbacks."""
    root = tmp_path_factory.mktemp("run")
    watch = GradWatch(every_n_steps=1, keep_sequences=True, summary=False, dirpath=root / "log")
    callbacks = [watch, AdaptiveClip(dirpath=root / "log")]
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=callbacks, default_root_dir=root, **quiet)
        trainer.fit(Reader(), DataLoader(torch.randn(8, 5, 2), 2))
    return root / "log"


@pytest.mark.parametrize("name", RECORDS)
def test_a_training_writes_each_field_and_no_other(folder, name):
    """A field that the schema lacks, or that nobody writes any more, is found."""
    text = (folder / name).read_text()
    written = [json.loads(text)] if name == "run.json" else [json.loads(line) for line in text.splitlines()[1:]]
    assert written
    assert {frozenset(record) for record in written} == {frozenset(get_type_hints(RECORDS[name]))}


def test_a_training_s_records_are_of_the_schema_s_types(folder):
    """What is written is read back without a line passed over."""
    run = load_run(folder)
    assert run.skipped_lines == 0
    assert run.profile_records
    assert run.event_records
    assert run.step_records


@pytest.mark.parametrize("name", RECORDS)
def test_the_reference_names_each_field(name):
    """Whoever reads the files by a script finds each field explained."""
    named = set(re.findall(r"`(\w+)`", REFERENCE.read_text()))
    assert set(get_type_hints(RECORDS[name])) - named == set()


@pytest.mark.parametrize("record", [ProfileRecord, EventRecord, StepRecord])
def test_the_checks_are_those_of_the_fields(record):
    """Each field has one check, and the step is required of every record."""
    required, optional = {ProfileRecord: records.PROFILE, EventRecord: records.EVENT, StepRecord: records.STEP}[record]
    assert {*required, *optional} == set(get_type_hints(record))
    assert "step" in required


def test_an_event_s_record_has_the_schema_s_fields():
    """The dataclass and the schema cannot part ways."""
    assert set(Event(EventKind.NOT_OBSERVED, 0).to_record()) == set(get_type_hints(EventRecord))


@pytest.mark.parametrize(("state", "leading"), [("h", True), ("c", False)])
def test_a_profile_without_its_newer_fields_is_still_read(state, leading):
    """A log of an earlier version does not say which state leads; there h does."""
    old = {name: value for name, value in profile(0, state=state).items() if name not in ("primary", "past")}
    read = records.checked(old, records.PROFILE)
    assert read["primary"] is None
    assert is_primary(old) is is_primary(read) is leading


@pytest.mark.parametrize(("name", "value"), [("primary", "yes"), ("past", 3), ("layer", -1), ("horizon", 1.5)])
def test_a_field_of_another_type_makes_a_damaged_line(name, value):
    """The check of a field follows from its type."""
    with pytest.raises(records.MalformedError):
        records.checked({**profile(0), name: value}, records.PROFILE)


def test_what_is_said_of_clipping_is_what_a_reader_checks() -> None:
    """No field of the verdict that ``run.json`` would lose, and none that nobody writes."""
    assert {field.name for field in fields(ClippingSummary)} == ClippingRecord.__annotations__.keys() | (
        ClippingRecord.__required_keys__
    )
