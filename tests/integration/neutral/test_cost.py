"""What watching costs a step: one small reduction, and no memory that grows."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch import GradWatch
from lightning_gradwatch.recurrent import Capture
from tests.integration.exact.real_calls import model_of
from tests.integration.watched import fit
from tests.models import TinyLanguageModel, sentences, trainer


class Counter(TorchDispatchMode):
    """Counts the operations of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


class CountedStep(Callback):
    """Counts all operations of one training step."""

    def __init__(self, step: int) -> None:
        self.step, self.mode = step, Counter()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            self.mode.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step + 1:
            self.mode.__exit__(None, None, None)


MODELS = {
    "one layer": TinyLanguageModel,
    "two layers": lambda: TinyLanguageModel(layers=2),
    "a scan": lambda: model_of("a scan, marked with tap_scan"),
    "a complex scan": lambda: model_of("a scan of which only the output is known"),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_ordinary_step_adds_one_small_reduction(name: str, tmp_path) -> None:
    """Between samples GradWatch adds the norms of the gradients, read once together with the loss, and no other operation."""
    counts = []
    for watched in (False, True):
        torch.manual_seed(0)
        counter = CountedStep(2)
        watch = [GradWatch(every_n_steps=100, dirpath=tmp_path / "run")] if watched else []
        trainer(tmp_path, [counter, *watch], max_steps=4).fit(MODELS[name](), sentences())
        counts.append(counter.mode.counts)
    bare, watched = counts
    added = {name: n - bare.get(name, 0) for name, n in watched.items() if n != bare.get(name, 0)}
    expected = {
        "aten::_foreach_norm": 1,
        "aten::stack": 1,
        "aten::detach": _operations_of_one_detach(),
    }
    assert added == expected


def _operations_of_one_detach() -> int:
    """One; old releases of PyTorch show it twice."""
    with Counter() as counter:
        torch.ones(1).detach()
    return counter.counts["aten::detach"]


@pytest.mark.parametrize(
    "way",
    [
        "a fused module",
        "nn.LSTMCell in a loop",
        "a fused module fed one timestep at a time",
        "a subclass that packs in its own forward",
        "states marked with tap",
        "a scan, marked with tap_scan",
    ],
)
def test_memory_is_flat_without_the_garbage_collector(way: str, tmp_path, monkeypatch) -> None:
    """Over 200 watched steps no call outlives its step, though the garbage collector is off."""
    references: list[weakref.ref] = []
    take = Capture.take

    def noted(self):
        taken = take(self)
        references.extend(weakref.ref(call) for call in taken)
        return taken

    monkeypatch.setattr(Capture, "take", noted)
    alive: list[int] = []
    tensors: list[int] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            alive.append(sum(reference() is not None for reference in references))
            if trainer.global_step % 50 == 10:
                tensors.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))

    gc.collect()
    gc.disable()
    try:
        watch = GradWatch(every_n_steps=5, dirpath=tmp_path / "run")
        fit(tmp_path, model_of(way), [Look(), watch], max_steps=200)
    finally:
        gc.enable()
    assert len(references) >= 200
    assert max(alive) == 0
    assert max(tensors) - min(tensors) == 0
