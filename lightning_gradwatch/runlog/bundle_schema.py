"""What a bundle must look like. All of it is looked at once, before anything in it is used:
a file may come from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_gradwatch.runlog import records
from lightning_gradwatch.runlog.portable import KIND, fits_kind
from lightning_gradwatch.runlog.records import MalformedError

Check = Callable[[Any], bool]

_DEEPEST = 100  # containers within each other
_MOST_VALUES = 2_000_000  # a list that holds another one twice, and that one a third … is small as a file
_MOST_THREADS = 1024
_MATMUL = ("highest", "high", "medium")
_PRECISIONS = (
    *("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "transformer-engine"),
    *("transformer-engine-float16", "16", "32", "64", "bf16"),
)
_MODULES_OWN = frozenset(vars(nn.Module()))


def first_fault(content: Mapping[str, Any], extras: Mapping[str, Any]) -> str | None:
    """What is wrong with a bundle, in a few words: the first key that is missing or holds what
    it must not; None if nothing is.

    Args:
        content: the file's.
        extras: what of it is not Lightning's.
    """
    fault = _shape_fault(content, "the bundle", [0], 0)
    for values, fields, where in ((content, _WHOLE, ""), (extras, _OWN, "gradwatch.")):
        for name, check in fields.items():
            if fault is None and name not in values:
                fault = f"{where}{name} is missing"
            elif fault is None and not check(values[name]):
                fault = f"{where}{name} is not what it must be"
    return fault


def _shape_fault(value: Any, at: str, seen: list[int], depth: int) -> str | None:
    """Nothing may be nested so that going through it takes for ever; what stands
    for something else must be whole.
    """
    seen[0] += 1
    if depth > _DEEPEST or seen[0] > _MOST_VALUES:
        return f"{at} is nested too deeply"
    if isinstance(value, Mapping):
        held = cast("Mapping[Any, Any]", value)
        faults = (_shape_fault(item, f"{at}[{key!r:.40}]"[:200], seen, depth + 1) for key, item in held.items())
        fault = next(filter(None, faults), None)
        return fault if fault or KIND not in held or fits_kind(held) else f"{at} stands for nothing that is known"
    if isinstance(value, (list, tuple, set, frozenset)):
        items = enumerate(cast("Sequence[Any]", value))
        return next(filter(None, (_shape_fault(item, f"{at}[{i}]"[:200], seen, depth + 1) for i, item in items)), None)
    return None


def _any(value: Any) -> bool:
    return True


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _positive(value: Any) -> bool:
    return _count(value) and value >= 1


def _number(value: Any) -> bool:
    return type(value) in (bool, int, float)


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _one_of(words: Collection[str]) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _listed(check: Check) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, cast("list[Any]", value)))


def _named(check: Check) -> Check:
    """A dict from texts."""
    return lambda value: (
        isinstance(value, dict)
        and all(isinstance(key, str) and check(item) for key, item in cast("dict[Any, Any]", value).items())
    )


def _with(fields: Mapping[str, Check]) -> Check:
    """A dict that has these keys, and perhaps others."""
    return lambda value: isinstance(value, dict) and all(key in value and ok(value[key]) for key, ok in fields.items())


def _attributes(check: Check) -> Check:
    """Module → attribute → value; of a name that nn.Module itself needs, nothing is taken."""

    def plain(names: Any) -> bool:
        return _named(check)(names) and not any(n.startswith("__") or n in _MODULES_OWN for n in names)

    return _named(plain)


def _event(value: Any) -> bool:
    try:
        return isinstance(value, dict) and bool(records.checked(cast("dict[str, Any]", value), records.EVENT))
    except MalformedError:
        return False


def _random(value: Any) -> bool:
    byte: Check = lambda state: isinstance(state, Tensor) and state.dtype == torch.uint8 and state.dim() == 1  # noqa: E731
    if not _with({"torch": byte, "python": lambda s: isinstance(s, (list, tuple)) and len(cast("list[Any]", s)) == 3})(
        value
    ):
        return False
    version, internal, gauss = value["python"]
    numpy = value.get("numpy")
    return (
        _count(version)
        and _listed(_count)(internal)
        and (gauss is None or _number(gauss))
        and (numpy is None or (_listed(_any)(numpy) and len(numpy) == 5 and _text(numpy[0]) and _tensor(numpy[1])))
        and _or_none(byte)(value.get("cuda"))
    )


def _modules(value: Any) -> bool:
    return _one_of(("auto",))(value) or _listed(_text)(value)


def _dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


_COUNTS = {
    **dict.fromkeys(("batch_idx", "epoch", "global_step", "batches_that_stepped"), _count),
    "is_last_batch": _flag,
    "accumulate_grad_batches": _positive,
}
_BACKEND: dict[str, Check] = {
    "threads": lambda value: _positive(value) and value <= _MOST_THREADS,
    "onednn": _flag,
    "deterministic": _flag,
    "matmul_precision": _one_of(_MATMUL),
    "default_dtype": _dtype,
}
WATCHING: dict[str, Check] = {
    "every_n_steps": _positive,
    "max_sequences": _or_none(_positive),
    "anchors": _positive,
    "keep_sequences": _flag,
    "modules": _modules,
}
"""The arguments of GradWatch that decide what it looks at. Of a bundle's
``config`` a replay takes nothing else.
"""

_WHOLE: dict[str, Check] = {
    "state_dict": _named(_any),
    "optimizer_states": _listed(_with({"state": lambda s: isinstance(s, dict), "param_groups": _listed(_named(_any))})),
    "lr_schedulers": _listed(_named(_any)),
    "hyper_parameters": _named(_any),
    "hparams_name": _or_none(_text),
    "epoch": _count,
    "global_step": _count,
}
_OWN: dict[str, Check] = {
    "bundle_version": lambda value: _text(value) and re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})*", value) is not None,
    "event": _event,
    "problems": _named(_text),
    "batch": _any,
    "buffers": _named(_tensor),
    "attributes": _attributes(_any),
    "numbers": _attributes(_number),
    "gradients": _named(_tensor),
    "random": _random,
    "counts": _with(_COUNTS),
    "changed_weights": _listed(_text),
    "eval_modules": _listed(_text),
    "frozen": _listed(_text),
    "module": _text,
    "precision": _one_of(_PRECISIONS),
    "precision_state": _named(_any),
    "device": _text,
    "world_size": _positive,
    "backend": _with(_BACKEND),
    "config": lambda value: _named(_any)(value) and all(n not in value or ok(value[n]) for n, ok in WATCHING.items()),
    "versions": _named(_or_none(_text)),
}
