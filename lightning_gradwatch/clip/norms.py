"""The gradient norm of a whole optimizer: one host sync, no false infinity."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

_SUMS_WIDER = any(one.name == "dtype" for one in torch.ops.aten._foreach_norm.Scalar._schema.arguments)  # pyright: ignore[reportPrivateUsage]
"""Whether ``_foreach_norm`` can sum in another precision than its tensors have;
before PyTorch 2.4 it cannot.
"""


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all entries of all tensors, as one scalar on the first
    one's device, without a host sync.

    Half precisions are summed in float32. It is inf where the squares overflow;
    :func:`true_norm` settles that.
    """
    groups: defaultdict[tuple[torch.device, torch.dtype, type], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        values = _values(tensor)
        if values.numel():
            groups[values.device, values.dtype, type(values)].append(values)
    return joined([norm_of(_norms_of_group(group)) for group in groups.values()])


def joined(norms: Sequence[Tensor]) -> Tensor:
    """The norm of a whole, of its parts' norms, on the first one's device; 0 of none."""
    return norm_of(_side_by_side(norms)) if len(norms) > 1 else norms[0] if norms else torch.zeros(())


def tensor_norms(tensors: Sequence[Tensor], *, wide: bool = False) -> Tensor:
    """L2 norm of each tensor, as one vector on the first one's device, without a host sync;
    inf as in :func:`global_norm`.

    Args:
        wide: sum in float64, where the device has it: no square of a float32 overflows there.
    """
    values = [_values(tensor) for tensor in tensors]
    if wide and all(v.device.type != "mps" for v in values):
        return _side_by_side([whole(torch.linalg.vector_norm(v, dtype=torch.float64)) for v in values])  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if len({(v.device, v.dtype, type(v)) for v in values}) == 1:
        return _norms_of_group(values)
    return _side_by_side([_norms_of_group([v])[0] for v in values])


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
    return largest * math.sqrt(sum(_float(norm_of(values)) ** 2 for values in scaled))


def read(scalars: Sequence[Tensor]) -> list[float]:
    """The values of scalars on any devices, in one host sync."""
    if len(scalars) <= 1:
        return [float(scalar) for scalar in scalars]
    return cast("list[float]", _side_by_side(scalars).tolist())  # pyright: ignore[reportUnknownMemberType]


def scale_(tensors: Sequence[Tensor], coefficient: float) -> None:
    """Multiply all tensors in place."""
    if 0.0 < coefficient < 1e-30:  # a float32 scalar this small is denormal: two steps keep its precision
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


def whole(tensor: Tensor) -> Tensor:
    """A DTensor's full value (a collective that every rank reaches); any other tensor as it is."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def _values(tensor: Tensor) -> Tensor:
    """Dense values; a sparse gradient's duplicates are summed first, as its optimizer will do."""
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def norm_of(tensor: Tensor) -> Tensor:
    """L2 norm over all entries of one tensor."""
    return torch.linalg.vector_norm(tensor)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _norms_of_group(tensors: Sequence[Tensor]) -> Tensor:
    """Of tensors that share device, dtype and type; half precisions are summed in float32."""
    dtype, wide = tensors[0].dtype, torch.promote_types(tensors[0].dtype, torch.float32)
    if dtype != wide and not _SUMS_WIDER:
        tensors = [tensor.to(wide) for tensor in tensors]
    among = {"dtype": wide} if _SUMS_WIDER else {}
    each = torch._foreach_norm(list(tensors), 2, **among)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return whole(torch.stack(each))


def _side_by_side(scalars: Sequence[Tensor]) -> Tensor:
    """On the first one's device, in float64 where that has it: one of them may be
    of a wider range than another.
    """
    device = scalars[0].device
    return torch.stack([scalar.to(device, torch.float64 if device.type != "mps" else None) for scalar in scalars])


def _float(tensor: Tensor) -> float:
    return float(whole(tensor))
