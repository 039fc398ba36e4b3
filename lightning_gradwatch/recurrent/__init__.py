"""Recurrent calls: how they are captured, and how their adjoint is replayed."""

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture import Capture
from lightning_gradwatch.recurrent.measure import profiles
from lightning_gradwatch.recurrent.sweep import Sweep, sweep

__all__ = ["Capture", "RecurrentCall", "Sweep", "profiles", "sweep"]
