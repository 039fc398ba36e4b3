"""Rules for adaptive clipping: one policy a file; a norm in and a decision out, or tensors clipped in place."""

from lightning_gradwatch.clip.adagc import AdaGC
from lightning_gradwatch.clip.agc import AGC
from lightning_gradwatch.clip.autoclip import AutoClip
from lightning_gradwatch.clip.make import POLICIES, make_policy
from lightning_gradwatch.clip.norm import Norm
from lightning_gradwatch.clip.policy import ClipPolicy, Decision
from lightning_gradwatch.clip.spike import Spike
from lightning_gradwatch.clip.tensor_policy import TensorPolicy
from lightning_gradwatch.clip.value import Value
from lightning_gradwatch.clip.zclip import ZClip

__all__ = [
    "AGC",
    "POLICIES",
    "AdaGC",
    "AutoClip",
    "ClipPolicy",
    "Decision",
    "Norm",
    "Spike",
    "TensorPolicy",
    "Value",
    "ZClip",
    "make_policy",
]
