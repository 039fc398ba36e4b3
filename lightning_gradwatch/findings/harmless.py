"""Our own errors never reach a training."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from lightning_gradwatch.clip.step.nonfinite_step import NonFiniteGradientError
from lightning_gradwatch.plain import warn


@contextmanager
def harmless(name: str, end: Callable[[], None], *, strict: bool) -> Generator[None, None, None]:
    """An error of our own in here ends the watching with one warning.

    Args:
        name: what failed, in the warning.
        end: ends the watching.
        strict: let the error through: for the package's tests.
    """
    try:
        yield
    except Exception as error:  # whatever it is, it is ours and must not reach the training
        if strict:
            raise
        end()
        warn(
            f"{name} failed ({type(error).__name__}: {error}) and watches no more; the training is not affected. "
            "Please report it.",
            stacklevel=3,
        )


@contextmanager
def unclipped_at_worst(name: str, switch_off: Callable[[str], None]) -> Generator[None, None, None]:
    """An error of our own in here ends the clipping; what ``on_nonfinite`` asks for goes through.

    Args:
        name: what failed.
        switch_off: ends the clipping, and says why.
    """
    try:
        yield
    except NonFiniteGradientError:
        raise
    except Exception as error:  # whatever it is, it is ours and must not reach the training
        switch_off(f"{name} failed and is off from now on; training goes on unclipped: {error!r}")
