"""Rules for adaptive clipping: one policy a file; a norm in, a decision out."""

from lightning_gradwatch.clip.autoclip import AutoClip
from lightning_gradwatch.clip.make import POLICIES, make_policy
from lightning_gradwatch.clip.norm import Norm
from lightning_gradwatch.clip.policy import ClipPolicy, Decision
from lightning_gradwatch.clip.spike import Spike
from lightning_gradwatch.clip.zclip import ZClip

__all__ = ["POLICIES", "AutoClip", "ClipPolicy", "Decision", "Norm", "Spike", "ZClip", "make_policy"]
