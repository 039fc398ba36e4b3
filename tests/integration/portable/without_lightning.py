"""Trains, watched and clipped, where neither Lightning is there. Run in a process of its own."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder


class Blocked(MetaPathFinder):
    """Lightning as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked())

import torch  # noqa: E402
from torch import nn  # noqa: E402

from lightning_gradwatch import clip_adaptively, load_run, watch  # noqa: E402

model = nn.GRU(4, 8, batch_first=True)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
with watch(model, optimizer, every_n_steps=2, dirpath=sys.argv[1]) as w, clip_adaptively(optimizer):
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(3, 6, 4))[0][:, -1].pow(2).mean().backward()
        w.step()

profiles = load_run(w.run_dir).profile_records
assert [record["step"] for record in profiles] == [0, 2]
assert not any(name.partition(".")[0] in ("lightning", "pytorch_lightning") for name in sys.modules)
print(w.verdicts[0].line)
