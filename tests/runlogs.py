"""Run logs as a training would leave them, made from closed forms: small, quick, and known to the last value."""

from __future__ import annotations

import math
import random
from pathlib import Path

from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.runlog.schema import ProfileRecord, StepRecord
from lightning_gradwatch.runlog.writer import RunLogWriter


def profile(
    step: int = 0,
    *,
    module: str = "rnn",
    kind: str = "RNN",
    layer: int = 0,
    direction: str = "forward",
    state: str = "h",
    timesteps: int = 40,
    rate: float = -0.02,
    rng: random.Random | None = None,
    every_step_has_loss: bool = True,
    channels: list[int] | None = None,
) -> ProfileRecord:
    """A profile whose lagged gradient is exp(rate · lag), up to a little noise where ``rng`` is given."""
    noise = [math.exp(rng.gauss(0, 0.08)) if rng else 1.0 for _ in range(timesteps)]
    last = timesteps - 1
    lagged = [math.exp(rate * lag) * (noise[lag] if lag else 1.0) for lag in range(timesteps)]
    direct = [0.01 * noise[t] if every_step_has_loss or t == last else 0.0 for t in range(timesteps)]
    total = [math.nan] * timesteps
    flowing = 0.0
    for t in reversed(range(timesteps)):
        flowing = math.hypot(direct[t], flowing * math.exp(rate))
        total[t] = flowing
    below = [lag for lag, value in enumerate(lagged) if value < 0.01]
    return ProfileRecord(
        step=step,
        epoch=step // 200,
        batch_idx=step % 200,
        micro_batch=0,
        loss=loss_at(step),
        call=0,
        module=module,
        kind=kind,
        layer=layer,
        direction=direction,
        state=state,
        timesteps=timesteps,
        sequences=8,
        batch_size=32,
        exact=True,
        inexact_reason=None,
        total=total,
        total_max=[1.7 * value for value in total],
        direct=direct,
        lagged=lagged,
        at=None,
        lag_at=None,
        horizon=below[0] if below else last,
        horizon_censored=not below,
        growth_rate=rate,
        channels=None if channels is None else len(channels),
        channel_horizons=channels,
        channels_censored=None if channels is None else channels.count(last),
    )


def loss_at(step: int) -> float:
    """A loss that falls from 3 towards 1."""
    return 1 + 2 / (1 + step / 50)


def write_run(
    folder: Path,
    *,
    kind: str = "RNN",
    module: str = "model.rnn",
    steps: int = 600,
    every: int = 20,
    timesteps: int = 40,
    layers: int = 1,
    start: float = -0.3,
    end: float = -0.1,
    explode_at: int | None = None,
    clipping: bool = True,
    seed: int = 0,
) -> Path:
    """A training in which the growth rate goes from ``start`` to ``end``; at ``explode_at`` the gradient overflows."""
    rng = random.Random(seed)
    writer = RunLogWriter(folder, header={"run_id": f"{kind}-{seed}"})
    writer.meta({"run_id": f"{kind}-{seed}", "versions": {"lightning-gradwatch": "0.1.0", "torch": "2.13.0"}})
    for step in range(steps):
        done = step / max(1, steps - 1)
        if step % every == 0:
            for layer in range(layers):
                for state in ("h", "c") if kind == "LSTM" else ("h",):
                    rate = start + (end - start) * done - 0.02 * layer
                    record = profile(
                        step,
                        module=module,
                        kind=kind,
                        layer=layer,
                        state=state,
                        timesteps=timesteps,
                        rate=rate,
                        rng=rng,
                    )
                    if explode_at is not None and step >= explode_at:
                        gone = timesteps // 3
                        record["total"][:gone] = [math.inf] * gone
                        record["total_max"][:gone] = [math.inf] * gone
                    writer.profile(record)
                    if not record["horizon_censored"] and step and step % (10 * every) == 0 and state == "h":
                        writer.event(
                            Event(
                                EventKind.VANISHING_HIDDEN_GRADIENT,
                                step,
                                module=module,
                                layer=layer,
                                direction="forward",
                                state="h",
                                value=float(record["horizon"]),
                                threshold=0.01,
                            )
                        )
        if clipping:
            _optimizer_step(writer, step, rng, skip=explode_at is not None and step in (explode_at, explode_at + 7))
    writer.close()
    return folder


def _optimizer_step(writer: RunLogWriter, step: int, rng: random.Random, *, skip: bool) -> None:
    norm = math.nan if skip else math.exp(rng.gauss(-0.5, 0.25)) * (15 if rng.random() < 0.01 else 1)
    clipped = norm > 2.0
    writer.step(
        StepRecord(
            step=step,
            optimizer=0,
            grad_norm=norm,
            clip_threshold=2.0 if step >= 10 else None,
            clip_coefficient=2.0 / norm if clipped else 1.0,
            clipped_norm=2.0 if clipped else norm,
            loss=loss_at(step),
            skipped=skip,
        )
    )
    if skip:
        writer.event(Event(EventKind.STEP_SKIPPED, step, value=norm, action="skipped"))
    elif clipped:
        writer.event(Event(EventKind.GRADIENT_CLIPPED, step, value=norm, threshold=2.0, action="clipped"))
