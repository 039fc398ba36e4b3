"""Trains on two ranks without a Trainer, watched on both, and leaves what each ended with in ``<out>/rank<N>.pt``.

Usage: ``python -m tests.integration.together.loop_ddp OUT RANKS``; ``RANKS``: those that watch, such as ``01``.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from lightning_gradwatch import watch
from tests.integration.loops import Tagger

SPOILT_STEP = 2


def main(rank: int, out: Path, watching: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{out / 'meet'}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(Tagger())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    watched = str(rank) in watching
    w = watch(model, optimizer, every_n_steps=1, dirpath=out / "run") if watched else nullcontext()
    torch.manual_seed(rank)
    with w:
        for step in range(4):
            x = torch.randn(3, 5 + rank, 4)
            if rank == 1 and step == SPOILT_STEP:
                x[1, 3, 2] = torch.nan
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            if step == SPOILT_STEP:
                for parameter in model.parameters():
                    parameter.grad = None
            optimizer.step()
    events = [(event.kind.value, event.module, event.timestep, event.sequence) for event in w.events] if watched else []
    left = {"weights": model.module.state_dict(), "events": events, "random": torch.get_rng_state()}
    torch.save(left, out / f"rank{rank}.pt")
    leave()


def leave() -> None:
    """Ends this process without PyTorch's teardown, in which a rank now and then waits for ever.

    ``~ProcessGroupGloo`` holds the GIL and joins a worker, which needs the GIL to let go of the last all-reduce's
    context: seen in 2 of 18 bare runs on a loaded machine, with nobody watching.
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (Path(sys.argv[1]), sys.argv[2]), nprocs=2)
