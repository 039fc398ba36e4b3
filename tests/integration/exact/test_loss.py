"""The loss in the run log is the training's own, and costs no host sync of its own."""

from __future__ import annotations

import pytest
import torch

from lightning_gradwatch import AdaptiveClip, GradWatch, load_run
from lightning_gradwatch.clip.step.measure_and_clip import measure
from tests.integration.ways import scaled
from tests.models import TinyLanguageModel, sentences, trainer


class Noting(TinyLanguageModel):
    """Keeps what its training step returned."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen = [*getattr(self, "seen", []), float(loss.detach())]
        return loss


class ByHand(Noting):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Noting, {}),
        (Noting, {"accumulate_grad_batches": 2}),
        (Noting, {"plugins": scaled}),
        (ByHand, {}),
    ],
    ids=["plain", "accumulation", "16-mixed", "by hand"],
)
def test_the_run_log_holds_the_loss(model, options, tmp_path):
    """As the training step returned it: of each sampled call, and of each optimizer step's last micro-batch."""
    module = model()
    options = {name: made() if callable(made) else made for name, made in options.items()}
    watch = GradWatch(every_n_steps=1)
    with torch.backends.mkldnn.flags(enabled=False):  # oneDNN has no fp16 on some processors
        trainer(tmp_path, [watch, AdaptiveClip()], max_steps=4, **options).fit(module, sentences())
    run = load_run(watch.run_dir)
    every = options.get("accumulate_grad_batches", 1)
    profiles = {4 * record["epoch"] + record["batch_idx"]: record["loss"] for record in run.profile_records}
    assert len(profiles) == 4  # of an optimizer step, one micro-batch is sampled
    assert profiles == pytest.approx({batch: module.seen[batch] for batch in profiles}, rel=1e-3)
    assert [record["loss"] for record in run.step_records] == pytest.approx(module.seen[every - 1 :: every], rel=1e-3)


def test_it_is_read_in_the_norm_s_own_sync(monkeypatch):
    """One read for the norms of all parts and the loss."""
    from lightning_gradwatch.clip.step import measure_and_clip as _clip_step
    from lightning_gradwatch.clip.step.groups import PolicyGroups

    reads: list[int] = []
    read = _clip_step.read
    monkeypatch.setattr(_clip_step, "read", lambda scalars: reads.append(len(scalars)) or read(scalars))
    module = torch.nn.Linear(2, 2)
    module(torch.ones(1, 2)).sum().backward()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    groups = PolicyGroups("norm", None, None)
    groups.begin(module, [optimizer])
    losses = [torch.tensor(0.75), torch.tensor(0.25, dtype=torch.half)]
    found, last, mean = measure(
        groups.of(module, optimizer, groups.new_state()), deferring=False, losses=losses, common=torch.tensor(0.375)
    )
    assert (len(found), last, mean, reads) == (1, 0.25, 0.375, [4])
