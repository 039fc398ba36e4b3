"""What becomes of the gradients between the backward pass and the optimizer step, whoever clips."""

from lightning_gradwatch.trainer.clip_audit.audit import ClipAudit

__all__ = ["ClipAudit"]
