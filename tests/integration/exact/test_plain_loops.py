"""What is measured in a loop is what GradWatch measures in a Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradwatch import GradWatch, load_run, watch
from tests.integration.exact.records import records
from tests.integration.loops import Tagger, data, fabric
from tests.models import TinyLanguageModel, sentences, trainer
from tests.versions import cpu_scaler


class Reference(pl.LightningModule):
    """The same training as ``by_hand``, with a Trainer.

    Args:
        model: trained on ``batches``; ``parts`` backward passes make a step.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.model(batch).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def by_hand(model: nn.Module, batches: list[Tensor], parts: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for number, batch in enumerate(batches):
        (model(batch).pow(2).mean() / parts).backward()
        if number % parts == parts - 1:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("parts", [1, 3])
def test_a_loop_leaves_the_records_of_a_trainer(parts: int, tmp_path: Path) -> None:
    """Every figure of every profile, whether the optimizer steps after each backward pass or after several."""
    model, batches = Tagger(), [data() for _ in range(12)]
    twin = nn.ModuleDict({"model": copy.deepcopy(model)})
    options: dict[str, Any] = {"every_n_steps": 2, "keep_sequences": True}
    ours = GradWatch(dirpath=tmp_path / "trainer", **options)
    accumulation = {"max_epochs": 1, "max_steps": -1, "accumulate_grad_batches": parts}
    trainer(tmp_path, [ours], **accumulation).fit(Reference(model), DataLoader(torch.cat(batches), batch_size=4))
    # The names are those of the model that is given.
    with watch(twin, dirpath=tmp_path / "loop", accumulate_grad_batches=parts, **options) as w:
        by_hand(twin["model"], batches, parts)
    assert len(records(w.run_dir)) >= 10
    assert records(w.run_dir) == records(ours.run_dir)
    assert [one.line for one in w.verdicts] == [one.line for one in ours.verdicts]


def test_the_loop_says_which_epoch_it_is(tmp_path: Path) -> None:
    """Then the records have it, and count batches from there, as those of a Trainer do."""
    batches = list(sentences())
    model = TinyLanguageModel()
    twin = copy.deepcopy(model)
    ours = GradWatch(every_n_steps=1, dirpath=tmp_path / "trainer")
    trainer(tmp_path, [ours], max_epochs=2, max_steps=-1).fit(model, sentences())
    optimizer = twin.configure_optimizers()
    with watch(twin, optimizer, every_n_steps=1, dirpath=tmp_path / "loop") as w:
        for w.epoch in range(2):
            for number, (words,) in enumerate(batches):
                optimizer.zero_grad()
                twin.loss(words, number).backward()
                optimizer.step()
    found, wanted = (load_run(one.run_dir).profile_records for one in (w, ours))
    assert [(r["step"], r["epoch"], r["batch_idx"]) for r in found] == [
        (r["step"], r["epoch"], r["batch_idx"]) for r in wanted
    ]
    assert {r["epoch"] for r in found} == {0, 1}


@pytest.mark.parametrize("scale", [2.0**4, 2.0**12])
def test_the_scale_of_a_loss_is_undone(scale: float, tmp_path: Path) -> None:
    """Under a gradient scaler, of which nobody told, the records are those of a training without it."""
    runs: list[list[dict[str, Any]]] = []
    for enabled in (False, True):
        torch.manual_seed(1)
        model, scaler = Tagger().double(), cpu_scaler(init_scale=scale, enabled=enabled)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with watch(model, optimizer, every_n_steps=1, dirpath=tmp_path / f"{enabled}") as w:
            for _ in range(3):
                optimizer.zero_grad()
                scaler.scale(model(data().double()).pow(2).mean()).backward()
                scaler.step(optimizer)
                scaler.update()
        runs.append(records(w.run_dir))
        assert not w.events
    for bare, under in zip(*runs, strict=True):
        assert under["total"] == pytest.approx(bare["total"], rel=1e-9)
        assert under["loss"] == pytest.approx(bare["loss"], rel=1e-9)


def test_overflows_under_a_scaler_are_its_search(tmp_path: Path) -> None:
    """A scaler that looks for its scale is a note, and no alarm."""
    model, scaler = Tagger(), cpu_scaler(init_scale=2.0**127)
    optimizer = torch.optim.Adam(model.parameters())
    with watch(model, optimizer, dirpath=tmp_path) as w:
        for _ in range(6):
            optimizer.zero_grad()
            output = model(data()).mean()
            scaler.scale(1e3 * (output - output.detach())).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [event.kind for event in w.events] == ["AMP_OVERFLOW"]


def test_names_are_those_of_the_model_behind_the_wrappers(tmp_path: Path) -> None:
    """Fabric and the compiler put theirs in front of every name."""
    loop = fabric()
    compiled = torch.compile(Tagger(), backend="eager")
    optimizer = torch.optim.Adam(compiled.parameters())
    for name, model, train in (("fabric", loop.model, loop.train), ("compiled", compiled, None)):
        with watch(model, dirpath=tmp_path / name) as w:
            if train is not None:
                list(train())
            else:
                for _ in range(2):
                    optimizer.zero_grad()
                    compiled(data()).pow(2).mean().backward()
                    optimizer.step()
        assert {record["module"] for record in load_run(w.run_dir).profile_records} == {"rnn", "cell"}
