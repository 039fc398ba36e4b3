"""Rules for adaptive clipping: one policy a file; a norm in and a decision
out, or tensors clipped in place.
"""

from lightning_gradwatch.clip.make import POLICIES, make_policy
from lightning_gradwatch.clip.policies.adagc import AdaGC
from lightning_gradwatch.clip.policies.agc import AGC
from lightning_gradwatch.clip.policies.aggc import AGGC
from lightning_gradwatch.clip.policies.autoclip import AutoClip
from lightning_gradwatch.clip.policies.norm import Norm
from lightning_gradwatch.clip.policies.spike import Spike
from lightning_gradwatch.clip.policies.value import Value
from lightning_gradwatch.clip.policies.zclip import ZClip
from lightning_gradwatch.clip.policy import ClipPolicy, Decision, StepReading
from lightning_gradwatch.clip.tensor_policy import TensorPolicy

__all__ = [
    "AGC",
    "AGGC",
    "POLICIES",
    "AdaGC",
    "AutoClip",
    "ClipPolicy",
    "Decision",
    "Norm",
    "Spike",
    "StepReading",
    "TensorPolicy",
    "Value",
    "ZClip",
    "make_policy",
]
