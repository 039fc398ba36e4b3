"""What has slots and may be referred to weakly all the same."""

from __future__ import annotations


class WeaklyHeld:
    """What may be referred to weakly although it has slots, in Python 3.10 too.

    There PyTorch's compiler also refers so to what it meets.
    """

    __slots__ = ("__weakref__",)
