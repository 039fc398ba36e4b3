"""Follows numbers that are not finite through the operations of a step, forward and backward, to
where each began."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning_utilities
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WRITES_ALL = ("fill_", "zero_", "copy_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_")
"""In-place operations that read nothing of what they write to."""

_MEMORY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "empty_permuted")
"""What these return is whatever the memory held."""


@dataclass(frozen=True)
class Origin:
    """Where a number that is not finite began.

    Args:
        number: of the operation, in the order in which they ran; -1 for what the step was given.
        operation: as torch calls it; None for what the step was given.
        phase: ``forward``, ``backward`` or ``given``.
        value: the first such number.
        line: file, line and source of the user's own code; of a backward operation that of its
            forward.
        module: qualified name of the module whose forward ran.
        node: of a backward operation, what autograd calls it.
        inputs: for each tensor that went in, its shape and range.
    """

    number: int
    operation: str | None
    phase: str
    value: float
    line: str | None = None
    module: str | None = None
    node: str | None = None
    inputs: tuple[str, ...] = ()

    def told(self) -> str:
        """In one or a few lines."""
        if self.operation is None:
            return f"{self.line} is {self.value}"
        inside = f", in {self.module}" if self.module else ""
        node = f" ({self.node}, the backward of the line below)" if self.node else ""
        lines = [f"{self.operation} made {self.value} from finite numbers, in the {self.phase} pass{inside}{node}"]
        lines += [f"    at {self.line}"] if self.line else []
        lines += [f"    input {i}: {text}" for i, text in enumerate(self.inputs)]
        return "\n".join(lines)


class Origins(TorchDispatchMode):
    """While it is on, every operation's results are looked at; one that is not finite gets the
    origin of what went in.

    A storage keeps one origin, so that views share it. An infinity that ends in a finite number (a
    mask that softmax takes away) leads nowhere and is forgotten with its storage.

    Attributes:
        module: qualified name of the module whose forward runs, kept up by the owner.
    """

    def __init__(self) -> None:
        super().__init__()
        self.module: str | None = None
        self._of_storage: dict[int, Origin] = {}
        self._held: list[Tensor] = []  # so that no other tensor gets a marked storage's memory
        self._number = 0

    def give(self, name: str, tensor: Tensor) -> None:
        """What the step is given: its batch, its weights."""
        value = first_bad(tensor)
        if value is not None:
            where = torch.nonzero(~tensor.detach().isfinite())[0].tolist()
            entry = f"[{', '.join(map(str, where))}]" if where else ""
            self._mark(tensor, Origin(-1, None, "given", value, f"{name}{entry}"))

    def of(self, tensor: Tensor | None) -> Origin | None:
        """The origin of what is not finite in a tensor; None where all is finite, or nothing is
        known."""
        if tensor is None or first_bad(tensor) is None:
            return None
        return self._of_storage.get(_storage(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then look at what came out."""
        kwargs = kwargs or {}
        self._number += 1
        name: str = func._schema.name.rpartition("::")[2]
        read, written = _reads_and_writes(func, name, args, kwargs)
        spoilt = [tensor for tensor in read if first_bad(tensor) is not None] if written else None
        result = func(*args, **kwargs)
        results = [*_tensors(result), *written]
        if name in _MEMORY:
            for tensor in results:
                self._of_storage.pop(_storage(tensor), None)
            return result
        for tensor in results:
            self._judge(str(func), tensor, read, written, spoilt)
        return result

    def _judge(
        self,
        operation: str,
        tensor: Tensor,
        read: Sequence[Tensor],
        written: Sequence[Tensor],
        spoilt: list[Tensor] | None,
    ) -> None:
        value = first_bad(tensor)
        shares = any(_storage(tensor) == _storage(other) for other in (*read, *written))
        if value is None:
            if not shares:  # a finite part of a whole says nothing of the rest
                self._of_storage.pop(_storage(tensor), None)
            return
        if shares and not written and _storage(tensor) in self._of_storage:
            return  # a view
        if spoilt is None:
            spoilt = [other for other in read if first_bad(other) is not None]
        known = [self._of_storage[_storage(other)] for other in spoilt if _storage(other) in self._of_storage]
        if known:
            origin = min(known, key=lambda one: one.number)
        elif spoilt:
            origin = Origin(self._number, None, "given", value, f"a constant{self._at()}")
        else:
            origin = self._made(operation, value, read)
        self._mark(tensor, origin)

    def _made(self, operation: str, value: float, read: Sequence[Tensor]) -> Origin:
        node: Any = torch._C._current_autograd_node()  # pyright: ignore  # what anomaly mode itself asks
        inputs = tuple(_range(tensor) for tensor in read)
        if node is None:
            line = _own_line(traceback.format_stack())
            return Origin(self._number, operation, "forward", value, line, self.module, None, inputs)
        line = _own_line(node.metadata.get("traceback_", []))
        return Origin(self._number, operation, "backward", value, line, None, node.name(), inputs)

    def _at(self) -> str:
        line = _own_line(traceback.format_stack())
        return f" in {line}," if line else f" in {self.module}," if self.module else ""

    def _mark(self, tensor: Tensor, origin: Origin) -> None:
        self._of_storage[_storage(tensor)] = origin
        self._held.append(tensor)


def first_bad(tensor: Tensor) -> float | None:
    """The first number that is not finite."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0 or tensor.layout != torch.strided:
        return None
    flat = tensor.detach()
    finite = flat.isfinite()
    if bool(finite.all()):
        return None
    bad = flat[~finite][0]
    return float(bad.real if bad.is_complex() else bad)


def _reads_and_writes(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    read: list[Tensor] = []
    written: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        tensors = _tensors(value)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes:
            written += tensors
        if not writes or not (argument.is_out or name in _WRITES_ALL):
            read += tensors
    return read, written


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    """A name for the memory, as long as the tensor is held."""
    storage: Any = tensor.untyped_storage() if tensor.layout == torch.strided else None
    return id(tensor) if storage is None else storage._cdata


def _range(tensor: Tensor) -> str:
    shape = "×".join(map(str, tensor.shape)) or "scalar"
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.numel() == 0 or tensor.layout != torch.strided or tensor.is_complex():
        return f"{shape}, {kind}"
    low, high = tensor.detach().aminmax()
    return f"{shape}, {kind}, from {low.item():.4g} to {high.item():.4g}"


_NOT_THE_USERS = tuple(
    f"{Path(str(cast('Any', package).__file__)).parent}/" for package in (torch, lightning_utilities)
) + tuple(
    f"/{name}/"
    for name in (
        "lightning_gradwatch",
        "lightning/pytorch",
        "pytorch_lightning",
        "lightning_fabric",
        "lightning/fabric",
    )
)


def _own_line(stack: Sequence[str]) -> str | None:
    """The innermost frame of the user's own code, of a formatted stack:
    ``file:line in function: source``."""
    for entry in reversed(stack):
        head, _, source = entry.strip().partition("\n")
        parts = head.split(", ")
        if len(parts) < 3 or any(part in head for part in _NOT_THE_USERS) or "<frozen" in head:
            continue
        file, line, function = parts[0].removeprefix("File ").strip('"'), parts[1].removeprefix("line "), parts[2]
        path = Path(file)
        file = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
        return f"{file}:{line} {function}: {source.strip().splitlines()[0] if source.strip() else ''}".rstrip(": ")
    return None
