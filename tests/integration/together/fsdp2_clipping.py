"""Clips, or fails to, under FSDP2 on two ranks, in a Trainer and in loops, and leaves in ``<out>`` what was said and what was true.

Usage: ``python -m tests.integration.together.fsdp2_clipping OUT SCENARIO …``
"""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_gradwatch import GradWatch, watch
from tests.integration.together.ddp import FailsOnRankOne
from tests.integration.together.fsdp2 import Net, Sharded
from tests.integration.together.loop_ddp import leave
from tests.models import WORDS, sentences

LOW, HIGH = 0.01, 1e6
STEPS = 8


def whole_norm(module: torch.nn.Module) -> float:
    """Of all gradients, by collectives."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in gradients]
    return math.hypot(*(float(g.double().norm()) for g in whole))


class Truth(pl.Callback):
    """Norms after each backward pass."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_after_backward(self, trainer, pl_module) -> None:
        self.norms.append(whole_norm(pl_module))


class Plain(Sharded):
    """Clips by the Trainer's settings alone."""

    def __init__(self) -> None:
        super().__init__(spoil=False, shard=True)


class Forgets(Plain):
    """Takes the place of Lightning's clipping and does not clip."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        pass


class Early(Plain):
    """Clips what the step before left, just before the backward pass."""

    def on_before_zero_grad(self, optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), LOW)


class InTheHook(Plain):
    """Clips by hand in the right place, to a bound that no gradient reaches."""

    def on_before_optimizer_step(self, optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), HIGH)


class ByHand(Plain):
    """Clips the whole gradient in the right place, in manual optimization with two optimizers, of which it clips one's."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx) -> None:
        body, head = self.optimizers()
        body.zero_grad()
        head.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(body, gradient_clip_val=LOW, gradient_clip_algorithm="norm")
        body.step()
        head.step()

    def configure_optimizers(self):
        body = [weight for name, weight in self.named_parameters() if "head" not in name]
        return [torch.optim.SGD(body, 0.1), torch.optim.Adam(self.net.head.parameters(), 0.01)]


MODELS = {"forgets": Forgets, "early": Early, "in-the-hook": InTheHook, "by-hand": ByHand}
BOUNDS = {"low": LOW, "fails": LOW, "high": HIGH, "forgets": LOW}


def fit(scenario: str, out: Path) -> None:
    """In a Trainer."""
    torch.manual_seed(7)
    truth = Truth()
    kind = {"fails": lambda **options: FailsOnRankOne("step", **options)}.get(scenario, GradWatch)
    watching = kind(every_n_steps=1, dirpath=out / scenario)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        callbacks=[watching, truth],
        default_root_dir=out,
        logger=False,
        max_steps=STEPS * (2 if scenario == "by-hand" else 1),
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=BOUNDS.get(scenario),
    )
    trainer.fit(MODELS.get(scenario, Plain)(), sentences(8 * STEPS, batch=8))
    leave_what_was(scenario, out, trainer.global_rank, watching, truth.norms)


def loop(scenario: str, out: Path) -> None:
    """Without one; the digits of its name are the ranks that watch."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(7)
    net, mesh = Net(), init_device_mesh("cpu", (2,))
    fully_shard(net.rnn, mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    watches = str(rank) in scenario
    w = watch(net, optimizer, every_n_steps=1, dirpath=out / scenario) if watches else nullcontext()
    norms = []
    with w:
        for (words,) in sentences(8 * STEPS, batch=8):
            optimizer.zero_grad()
            words = words[rank::2]
            logits = net(words[:, :-1], 1.0)
            torch.nn.functional.cross_entropy(logits.reshape(-1, WORDS), words[:, 1:].flatten()).backward()
            norms.append(whole_norm(net))
            torch.nn.utils.clip_grad_norm_(net.parameters(), LOW)
            optimizer.step()
    leave_what_was(scenario, out, rank, w if watches else None, norms)


def leave_what_was(scenario: str, out: Path, rank: int, watching, norms: list[float]) -> None:
    said = [] if watching is None else [one.to_record() for one in watching.clipping]
    found = {"clipping": said, "norms": norms, "kinds": [event.kind.value for event in getattr(watching, "events", [])]}
    (out / f"{scenario}.rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        (loop if name.startswith("loop") else fit)(name, Path(sys.argv[1]))
    leave()
