"""What AdaptiveClip's step costs beside `torch.nn.utils.clip_grad_norm_`, for each policy, and what three packages' do.

    python -m benchmarks.cost.clip_step
    python -m benchmarks.cost.clip_step --device cuda --rounds 300

All are run in turn, round by round, on the same gradients of 10 million parameters in 100 tensors; each round gives one ratio to
`clip_grad_norm_` of that round. Shown are the medians with quartiles; on a CPU it is the process's own time, in which others' load counts
little. The norm stays under the bound of `Norm`, `Spike`, `ZClip` and `clip_grad_norm_`, so that these measure only; `clip_grad_norm_`
multiplies all the same. What waits for the device is waited for. The packages' steps are what their Lightning callbacks call; autoclip
has none, and its step is called as its documentation says.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks.clipping.methods import autoclip, smartclip, zclip
from lightning_gradwatch.clip import POLICIES, ClipPolicy, Norm, TensorPolicy, ZClip
from lightning_gradwatch.clip.step.groups import PolicyGroups
from lightning_gradwatch.clip.step.measure_and_clip import clip, measure

ENTRIES, TENSORS, BOUND = 10_000_000, 100, 1e9
UNBOUND: dict[str, ClipPolicy] = {"norm": Norm(BOUND), "zclip": ZClip(max_norm=BOUND)}
"""Policies whose default bound would be exceeded."""


def model(device: str) -> nn.Module:
    """100 matrices of 100,000 entries each, with gradients."""
    width = ENTRIES // TENSORS // 100
    module = nn.ParameterDict({f"w{i}": nn.Parameter(torch.randn(100, width, device=device)) for i in range(TENSORS)})
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    return module


def step_of(policy: str | ClipPolicy | TensorPolicy, module: nn.Module, **patterns: list[str]) -> Callable[[], object]:
    """One optimizer step of AdaptiveClip without the Trainer: find the groups, measure, decide, act."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    groups = PolicyGroups(policy, patterns.get("exclude"), None)
    groups.begin(module, [optimizer])
    state = groups.new_state()
    loss = torch.zeros((), device=next(module.parameters()).device)

    def step() -> None:
        own = groups.of(module, optimizer, state)
        for group, measured in zip(own, measure(own, deferring=False, losses=[loss])[0], strict=True):
            clip(group, measured, deferring=False, loss=1.0)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.perf_counter if arguments.device.startswith("cuda") else time.process_time
    module = model(arguments.device)
    parameters = list(module.parameters())
    fresh = [p.grad.clone() for p in parameters if p.grad is not None]
    optimizer = torch.optim.SGD(parameters, 0.1)
    loss = torch.ones((), device=arguments.device)
    packages = {
        "zclip 1.0.0": zclip(max_grad_norm=BOUND)(module, optimizer),
        "smartclip 0.1.1": smartclip("AutoClip")(module, optimizer),
        "autoclip 0.2.1": autoclip("QuantileClip", global_threshold=True)(module, optimizer),
    }
    steps: dict[str, Callable[[], object]] = {
        "clip_grad_norm_": lambda: torch.nn.utils.clip_grad_norm_(parameters, BOUND),
        **{name: step_of(UNBOUND.get(name, name), module) for name in POLICIES},
        "norm, with exclude": step_of(Norm(BOUND), module, exclude=["w1*"]),
        **{name: partial(act, loss) for name, act in packages.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    with torch.no_grad():
        for round_ in range(arguments.rounds + 5):
            for name, step in steps.items():
                for parameter, gradient in zip(parameters, fresh, strict=True):
                    parameter.grad.copy_(gradient)  # type: ignore[union-attr]
                _wait(arguments.device)
                start = clock()
                step()
                _wait(arguments.device)
                if round_ >= 5:
                    times[name].append(clock() - start)
    bare = times["clip_grad_norm_"]
    print(f"{'':>20}  {'ms':>8}  {'quartiles':>17}  {'ratio':>6}  {'quartiles':>13}")
    for name, own in times.items():
        low, middle, high = statistics.quantiles([1e3 * t for t in own], n=4)
        ratios = statistics.quantiles([a / b for a, b in zip(own, bare, strict=True)], n=4)
        print(f"{name:>20}  {middle:8.2f}  {low:8.2f} {high:8.2f}  {ratios[1]:6.2f}  {ratios[0]:6.2f} {ratios[2]:6.2f}")


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
