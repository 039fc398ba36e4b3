"""The gradient norm of a whole optimizer: one host sync, no false infinity."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all entries of all tensors, as one scalar on the first one's device, without a host sync.

    Half precisions are summed in float32. It is inf where the squares overflow; :func:`true_norm` settles that.
    """
    groups: defaultdict[tuple[torch.device, torch.dtype, type], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        values = _values(tensor)
        if values.numel():
            groups[values.device, values.dtype, type(values)].append(values)
    if not groups:
        return torch.zeros(())
    norms: list[Tensor] = []
    for (_, dtype, _), group in groups.items():
        wide = torch.promote_types(dtype, torch.float32)
        each = torch._foreach_norm(group, 2, dtype=wide)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        norms.append(_whole(_norm(torch.stack(each))))
    if len(norms) == 1:
        return norms[0]
    first = norms[0].device
    return _norm(torch.stack([norm.to(first, torch.float64 if first.type != "mps" else None) for norm in norms]))


def true_norm(tensors: Iterable[Tensor]) -> float:
    """The same norm, safe from overflow and slower: entries are divided by the largest one first.

    Returns:
        The norm; inf or NaN only if an entry is.
    """
    tensors = [values for tensor in tensors if (values := _values(tensor)).numel()]
    if not tensors:
        return 0.0
    largest = max((_float(values.abs().amax()) for values in tensors), key=lambda x: (math.isnan(x), x))
    if not math.isfinite(largest) or largest == 0.0:
        return largest
    scaled = [values.to(torch.promote_types(values.dtype, torch.float32)) / largest for values in tensors]
    return largest * math.sqrt(sum(_float(_norm(values)) ** 2 for values in scaled))


def norms_of(gradients: Sequence[Tensor], parameters: Sequence[Tensor] = ()) -> tuple[float, float | None]:
    """The norms of both, in one host sync; more only where float32 overflowed or an entry is not finite.

    Returns:
        The gradients' true norm, and the parameters'; None where none are given.
    """
    norm = global_norm(gradients)
    if not parameters:
        value, size = float(norm), None
    else:
        both = torch.stack([norm, global_norm(parameters).to(norm)])
        value, size = cast("list[float]", both.tolist())  # pyright: ignore[reportUnknownMemberType]
    return (true_norm(gradients) if math.isinf(value) else value), size


def scale_(tensors: Sequence[Tensor], coefficient: float) -> None:
    """Multiply all tensors in place."""
    if coefficient < 1e-30:  # a float32 scalar this small is denormal: two steps keep its precision
        root = math.sqrt(coefficient)
        scale_(tensors, root)
        scale_(tensors, root)
        return
    dense = [tensor for tensor in tensors if not tensor.is_sparse]
    if dense:
        torch._foreach_mul_(dense, coefficient)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    for tensor in tensors:
        if tensor.is_sparse:
            tensor.mul_(coefficient)


def _values(tensor: Tensor) -> Tensor:
    """Dense values; a sparse gradient's duplicates are summed first, as its optimizer will do."""
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _whole(tensor: Tensor) -> Tensor:
    """A DTensor's full value (a collective that every rank reaches); any other tensor as it is."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def _float(tensor: Tensor) -> float:
    return float(_whole(tensor))
