"""The search for cells of one's own, on the first training step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from lightning_gradwatch.recurrent.capture.compiled import is_compiling
from lightning_gradwatch.recurrent.capture.everywhere import after_every_module, leave_every_module
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.modules import beside, unregistered
from lightning_gradwatch.recurrent.capture.search_hooks import SearchHooks
from lightning_gradwatch.recurrent.capture.slots import Slots, arguments, is_own, parameters, results
from lightning_gradwatch.recurrent.graph.ways_up import HEAVY, MOVING, above

_Address = tuple[int, int, torch.Size]
"""Where a tensor lies in memory: its storage, offset and shape."""

RETURNS = 2
"""So often a state must have come back through other operations
before a module is taken for a cell.
"""


class _Returns:
    """What one module has returned so far, without holding any tensor, and what of it came back."""

    def __init__(self) -> None:
        self.addresses: dict[_Address, tuple[StorageWeakRef, str]] = {}
        self.nodes: dict[int, str] = {}
        self.itself: Counter[tuple[str, str]] = Counter()
        self.changed: Counter[tuple[str, str]] = Counter()

    def slots(self, module: nn.Module) -> Slots | None:
        """Where its states go in and come out; None if it is no cell."""
        changed = {pair: count for pair, count in self.changed.items() if count >= RETURNS}
        returns = self.itself + Counter(changed)
        return Slots.from_returns(module, _in_order(returns, list(self.nodes.values()))) if returns else None


_OUTSIDE = " outside of the model"


def is_outside(name: str) -> bool:
    """Whether a name is that of a module which the model does not hold: another
    model, run beside it, may be one.
    """
    return name.split(" #")[0].endswith(_OUTSIDE)


class Discovery:
    """Finds cells: modules called several times in one forward of which something that they return
    comes back as their input, itself or a few operations later.

    It watches for one training step every module without a recurrent one inside, whether it is
    called or its ``forward`` is, and those that the model holds in a list of its own, where PyTorch
    does not know of them. It holds no tensor, so that the step needs no more memory than any other.

    Args:
        known: recurrent modules that are watched already.
        candidates: of the names of the modules to look at; None are all.
        is_over: asked by the hooks, for where nobody said that the fit is over.

    Attributes:
        hooks: those on the modules.
    """

    def __init__(
        self,
        model: nn.Module,
        known: Iterable[nn.Module],
        candidates: Collection[str] | None = None,
        is_over: FitIsOver | None = None,
    ) -> None:
        self._model = model
        # By identity: a metric's hash changes with what it has seen.
        self._returns: MutableMapping[nn.Module, _Returns] = WeakIdKeyDictionary()
        known = set(known)
        self._names: MutableMapping[nn.Module, str] = WeakIdKeyDictionary()
        for module, name in beside(model, known, holding=False).items():
            if candidates is None or name in candidates:
                self._names[module] = name
        self._known = {id(module) for module in (*known, *model.modules())}
        self._pytorchs: set[nn.Module] = set()
        self.hooks = SearchHooks(self._names, self._after, is_over, around=True)
        self._everywhere: RemovableHandle | None = None
        # A compiled module warns of global hooks, which would fire for its wrapper too.
        if candidates is None and not any(
            "_orig_mod" in vars(module).get("_modules", ()) for module in model.modules()
        ):
            self._everywhere = after_every_module(self._after_any)

    def cells(self) -> dict[str, tuple[nn.Module, Slots | None]]:
        """Qualified name → the module, and its slots where it is a cell. Of cells in one another
        the innermost whose states are all that there is to be carried; a part of a cell that sees
        its state come back is none.
        """
        cells = {module: slots for module, made in self._returns.items() if (slots := made.slots(module)) is not None}
        for outer in list(cells):
            inner = [module for module in outer.modules() if module is not outer and module in cells]
            if outer not in cells or not inner:
                continue
            carried = {node for module in inner for node in self._returns[module].nodes}
            if carried.issuperset(self._carried(outer, cells[outer])):
                del cells[outer]
            else:
                for module in inner:
                    del cells[module]
        unlisted = self._unlisted([*cells, *self._pytorchs])
        by_name: dict[str, tuple[nn.Module, Slots | None]] = {
            self._names.get(module) or unlisted[module]: (module, slots) for module, slots in cells.items()
        }
        return by_name | {unlisted[module]: (module, None) for module in self._pytorchs}

    def states(self) -> set[int]:
        """The numbers of the places in the graph where the cells' states were made."""
        cells = self.cells().values()
        return {node for module, slots in cells if slots is not None for node in self._carried(module, slots)}

    def close(self) -> None:
        """Take the hooks off."""
        self.hooks.close()
        if self._everywhere is not None:
            leave_every_module(self._everywhere)
            self._everywhere = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is inert, as a copy of a capture is."""
        return {"hooks": self.hooks, "_everywhere": None, "_names": {}, "_returns": {}, "_known": ()}

    def _after_any(
        self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any = None
    ) -> None:
        if not is_compiling() and id(module) not in self._known:
            self.hooks.after(module, inputs, kwargs, outputs)

    cast("Any", _after_any).only_looks = True  # for who has to know what comes before a hook

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        self._compare(module, arguments(inputs, kwargs, parameters(module)), results(outputs))

    def _compare(self, module: nn.Module, taken: Mapping[str, Tensor], returned: Mapping[str, Tensor]) -> None:
        if isinstance(module, nn.RNNBase) or Slots.of(module) is not None:
            self._pytorchs.add(module)
            return
        returns = self._returns.setdefault(module, _Returns())
        for path, tensor in taken.items():
            _note(module, returns, path, tensor)
        passed = {address for tensor in taken.values() if (address := _address_of(tensor)) is not None}
        for path, tensor in returned.items():
            address = _address_of(tensor)
            if (
                not tensor.requires_grad or tensor.grad_fn is None or address in passed
            ):  # what it only hands on is no state
                continue
            if address is not None:
                returns.addresses[address] = StorageWeakRef(tensor.untyped_storage()), path
            returns.nodes[_number(tensor.grad_fn)] = path

    def _carried(self, module: nn.Module, slots: Slots) -> set[int]:
        """The places in the graph where a cell's states were made."""
        return {node for node, path in self._returns[module].nodes.items() if path in (slots.made or ())}

    def _unlisted(self, modules: Iterable[nn.Module]) -> dict[nn.Module, str]:
        """Names for modules that the model has not registered: where a list or dictionary of its
        own holds them, or their class.
        """
        holders = {module: name for name, module in unregistered(self._model).items()}
        names: dict[nn.Module, str] = {}
        for module in modules:
            name = holders.get(module) or f"{type(module).__name__}{_OUTSIDE}"
            taken = sum(other.split(" #")[0] == name for other in names.values())
            names[module] = f"{name} #{taken + 1}" if taken else name
        return names


def _note(module: nn.Module, returns: _Returns, path: str, tensor: Tensor) -> None:
    """Whether what the module takes here is something that it has returned."""
    address = _address_of(tensor)
    known = None if address is None else returns.addresses.get(address)
    # A storage that is gone may have left its identity to another.
    if known is not None and tensor.requires_grad and not known[0].expired():
        returns.itself[known[1], path] += 1
    elif tensor.grad_fn is not None and any(parameter.dim() > 1 for parameter in module.parameters()):
        # Between two calls of one of PyTorch's own layers the state may only be moved about: what
        # is computed there is the state.
        is_users = is_own(module)
        made_at = tensor.grad_fn, tensor.output_nr
        for out in above(made_at, returns.nodes, stop=HEAVY if is_users else None, only=None if is_users else MOVING):
            returns.changed[out, path] += 1


def _address_of(tensor: Tensor) -> _Address | None:
    try:
        return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.shape  # pyright: ignore[reportPrivateUsage]
    except (NotImplementedError, RuntimeError):  # a tensor of another kind, which lies nowhere
        return None


def _number(node: Any) -> int:
    return node._sequence_nr()


def _in_order(returns: Mapping[tuple[str, str], int], made: list[str]) -> dict[tuple[str, str], int]:
    """By the order in which the states are returned."""
    place = {path: i for i, path in enumerate(dict.fromkeys(made))}
    return {pair: returns[pair] for pair in sorted(returns, key=lambda pair: place[pair[0]])}
