"""Loops without a Trainer that clip, or fail to, each in a way of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.campaigns.clip_audit.models import Ledger, Network, norm_of
from lightning_gradwatch import Norm, clip_adaptively, watch

Batches = Iterable[list[Tensor]]
Train = Callable[[Network, Any, Ledger, Batches], Iterator[None]]
"""Yields once everything is ready, so that the watch can begin, and then trains."""


def by_hand(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    yield
    for batch in batches:
        optimizer.zero_grad()
        model.loss(batch).backward()
        ledger.clip(model.parameters())
        optimizer.step()


def accumulating(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    yield
    for number, batch in enumerate(batches):
        (model.loss(batch) / 2).backward()
        if number % 2:
            ledger.norms.append(float(clip_grad_norm_(model.parameters(), ledger.bound)))
            optimizer.step()
            optimizer.zero_grad()


def with_a_closure(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    yield
    for batch in batches:

        def closure(batch: list[Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            ledger.clip(model.parameters())
            return loss

        optimizer.step(closure)


def unscaled(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000)
    yield
    for batch in batches:
        optimizer.zero_grad()
        scaler.scale(model.loss(batch)).backward()
        scaler.unscale_(optimizer)
        ledger.clip(model.parameters())
        scaler.step(optimizer)
        scaler.update()


def before_unscaling(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000)
    yield
    for batch in batches:
        optimizer.zero_grad()
        scaler.scale(model.loss(batch)).backward()
        ledger.clip(model.parameters())
        scaler.step(optimizer)
        scaler.update()


def by_fabric(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    fabric = Fabric(accelerator="cpu", devices=1)
    yield
    for batch in batches:
        optimizer.zero_grad()
        fabric.backward(model.loss(batch))
        ledger.norms.append(norm_of(model.parameters()))
        nn.utils.clip_grad_norm_(model.parameters(), ledger.bound)
        optimizer.step()


def adaptively(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    """Which begins after the watch: its hook is called before the watch's all the same."""
    yield
    with clip_adaptively(optimizer, Norm(ledger.bound)):
        for batch in batches:
            optimizer.zero_grad()
            model.loss(batch).backward()
            ledger.norms.append(norm_of(model.parameters()))
            optimizer.step()


def too_soon(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    yield
    for batch in batches:
        optimizer.zero_grad()
        loss = model.loss(batch)
        clip_grad_norm_(model.parameters(), ledger.bound)
        loss.backward()
        optimizer.step()


def too_late(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    yield
    for batch in batches:
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
        clip_grad_norm_(model.parameters(), ledger.bound)


def another_module(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    """Clips what the watch is not asked about, beside the step: no fault of this one's."""
    other = nn.Linear(2, 2)
    yield
    for batch in batches:
        optimizer.zero_grad()
        model.loss(batch).backward()
        clip_grad_norm_(other.parameters(), ledger.bound)
        optimizer.step()


def nothing(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    yield
    for batch in batches:
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()


def switched_off(model: Network, optimizer: Any, ledger: Ledger, batches: Batches) -> Iterator[None]:
    clip = ledger.bound < 0
    yield
    for batch in batches:
        optimizer.zero_grad()
        model.loss(batch).backward()
        if clip:
            clip_grad_norm_(model.parameters(), ledger.bound)
        optimizer.step()


def watched(train: Train, model: Network, ledger: Ledger, batches: Batches, every: int, folder: str) -> watch:
    """Train so, and give the watch. Of one run in two the optimizer is found when it steps."""
    optimizer = model.configure_optimizers()
    run = train(model, optimizer, ledger, batches)
    next(run)
    known = optimizer if every % 2 else None
    with watch(model, known, every_n_steps=every, dirpath=f"{folder}/run", summary=False) as watcher:
        for _ in run:
            pass
    return watcher
