"""Operations whose slope is infinite or undefined somewhere: the usual suspects where a finite loss
sends back a NaN, or is none itself.

Which of them it was cannot be told: what they computed with is gone after the backward pass. So
they are named as suspects only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

MOST_NAMED = 3


@dataclass(frozen=True)
class Suspect:
    """One operation of a graph.

    Args:
        name: as a reader knows it: ``sqrt``, ``log``.
        why: what it does wrong, and where.
        remedy: what to write instead.
    """

    name: str
    why: str
    remedy: str


_ROOT = "Add a small number under the root: (x + 1e-12).sqrt()."
_LOG = "Keep its argument away from 0: clamp_min(1e-12), or log_softmax, logsigmoid, log1p where they fit."
_DIV = "Keep the divisor away from 0: add a small number to it, or clamp_min(1e-12)."
_EXP = "Bound its argument: clamp(max=…), or work with logarithms (logsumexp, softplus)."
_EDGE = "Keep its argument inside the open interval: clamp(-1 + 1e-6, 1 - 1e-6)."
_ROWS = "See to it that every row of the softmax has an entry that is not masked, or mask with a large negative number instead of -inf."
_HIDES = (
    "What where(), masked_fill() or nan_to_num() hides in the forward comes back in the backward pass: make the argument safe before "
    "the operation, where(ok, x, 1).sqrt() instead of where(ok, x.sqrt(), 0)."
)
_FACTORS = "Add a small multiple of the identity to the matrix before it is factorised or inverted."

_SURE = {
    "CtcLoss": Suspect(
        "ctc_loss",
        "is infinite where a target is longer than its input can spell",
        "Use CTCLoss(zero_infinity=True), or leave out targets longer than their input (each repeated letter needs one more step).",
    ),
    "Sqrt": Suspect("sqrt", "has an infinite slope at 0 and is NaN below", _ROOT),
    "Rsqrt": Suspect("rsqrt", "is infinite at 0", _ROOT),
    "Log": Suspect("log", "is infinite at 0 and NaN below", _LOG),
    "Log2": Suspect("log2", "is infinite at 0 and NaN below", _LOG),
    "Log10": Suspect("log10", "is infinite at 0 and NaN below", _LOG),
    "Log1P": Suspect("log1p", "is infinite at -1", _LOG),
    "Xlogy": Suspect("xlogy", "has an infinite slope at 0", _LOG),
    "Logit": Suspect("logit", "is infinite at 0 and 1", "Give it an eps: torch.logit(x, eps=1e-6)."),
    "Erfinv": Suspect("erfinv", "is infinite at -1 and 1", _EDGE),
    "Acos": Suspect("acos", "has an infinite slope at -1 and 1", _EDGE),
    "Asin": Suspect("asin", "has an infinite slope at -1 and 1", _EDGE),
    "Atanh": Suspect("atanh", "is infinite at -1 and 1", _EDGE),
    "Acosh": Suspect("acosh", "has an infinite slope at 1", "Keep its argument over 1."),
    "Reciprocal": Suspect("a division", "is infinite at 0", _DIV),
    "Pow": Suspect("a power", "has an infinite slope at 0 for an exponent under 1, and a negative one is infinite there", _ROOT),
    "Exp": Suspect("exp", "overflows above 88 in float32, above 11 in float16", _EXP),
    "Expm1": Suspect("expm1", "overflows above 88 in float32", _EXP),
    "Sinh": Suspect("sinh", "overflows above 89 in float32", _EXP),
    "Cosh": Suspect("cosh", "overflows above 89 in float32", _EXP),
    "Svd": Suspect("an SVD", "has no finite slope where singular values coincide or are 0", _FACTORS),
    "Eigh": Suspect("an eigendecomposition", "has no finite slope where eigenvalues coincide", _FACTORS),
    "Eig": Suspect("an eigendecomposition", "has no finite slope where eigenvalues coincide", _FACTORS),
    "Inv": Suspect("an inverse", "is infinite for a singular matrix", _FACTORS),
    "Solve": Suspect("a linear solve", "is infinite for a singular matrix", _FACTORS),
    "Cholesky": Suspect("a Cholesky factor", "has no finite slope for a singular matrix", _FACTORS),
    "Slogdet": Suspect("a log-determinant", "is infinite for a singular matrix", _FACTORS),
    "Logdet": Suspect("a log-determinant", "is infinite for a singular matrix", _FACTORS),
}  # fmt: skip
"""By the names of their nodes, without ``Linalg`` before, ``Ex`` and ``Backward0`` behind."""

_POSSIBLE = {
    "Div": Suspect("a division", "is infinite or NaN where its divisor is 0", _DIV),
    "Softmax": Suspect("softmax", "is NaN over a row of nothing but -inf", _ROWS),
    "LogSoftmax": Suspect("log_softmax", "is NaN over a row of nothing but -inf", _ROWS),
    "Logsumexp": Suspect("logsumexp", "is -inf over a row of nothing but -inf", _ROWS),
    "ScaledDotProduct": Suspect("attention", "is NaN for a query whose every key is masked", _ROWS),
    "Std": Suspect("std", "is NaN of a single value", "Take it over two values at least, or use std(correction=0)."),
    "Var": Suspect("var", "is NaN of a single value", "Take it over two values at least, or use var(correction=0)."),
    "Where": Suspect("where", "hides a NaN of the branch not taken in the forward pass alone", _HIDES),
    "NanToNum": Suspect("nan_to_num", "hides a NaN in the forward pass alone", _HIDES),
    "MaskedFill": Suspect("masked_fill", "hides a NaN in the forward pass alone", _HIDES),
}
"""Those that are everywhere, and mostly innocent."""

_SPREADS = {"Std", "Var"}
"""Of equal values they are 0, and so is their slope in PyTorch; of a single one they are NaN."""

_HIDING = {"where", "nan_to_num", "masked_fill"}

_EMPTY = Suspect(
    "a tensor without entries",
    "has a mean of NaN",
    "Leave the term out where its mask selects nothing, or divide a sum by mask.sum().clamp(min=1).",
)
_IGNORED = Suspect(
    "cross_entropy (nll_loss)",
    "is NaN where ignore_index leaves it no target",
    "Leave out batches without a target, or take reduction='sum' and divide by the number of targets, at least 1.",
)
_MEAN = 1
"""How PyTorch numbers the reduction of a loss to its mean."""


def suspects(nodes: Iterable[Node], *, of_loss: bool = False) -> list[Suspect]:
    """Those among the nodes, each once: your own functions, then the likely ones, then the
    possible ones; nearest first in each.

    Args:
        nodes: as :func:`nodes_between` gives them, nearest to the loss first.
        of_loss: whether the loss itself is not finite, and not only what it sends back.
    """
    makers: dict[str, Suspect] = {}
    sure: dict[str, Suspect] = {}
    possible: dict[str, Suspect] = {}
    last: list[Suspect] = []
    for place, node in enumerate(nodes):
        name = _plain(node.name())
        made = _own_function(node)
        if made is not None:
            makers.setdefault(made.name, made)
        elif of_loss and _is_empty(node):
            return [_EMPTY]
        elif of_loss and name.startswith("NllLoss") and getattr(node, "_saved_reduction", None) == _MEAN:
            possible.setdefault(_IGNORED.name, _IGNORED)
        elif name in _SURE and not (name == "Pow" and _is_smooth(node)):
            sure.setdefault(_SURE[name].name, _SURE[name])
        elif name == "Div" and of_loss and place and _divides_by_constant(node):  # Lightning's own stands first
            last = [_POSSIBLE[name]]
        elif name in _SPREADS and _is_of_several(node):
            continue
        elif name in _POSSIBLE and (name != "Div" or not _divides_by_constant(node) or _HIDING & possible.keys()):
            possible.setdefault(_POSSIBLE[name].name, _POSSIBLE[name])
    if makers or sure:  # what hides a NaN needs another that made it, and then belongs to the story
        possible = {name: one for name, one in possible.items() if name in _HIDING}
    named = [*makers.values(), *sure.values(), *possible.values()]
    return (named or last)[:MOST_NAMED]


def told(named: list[Suspect]) -> str:
    """A sentence that names them as what they are."""
    if not named:
        return ""
    listed = "; ".join(f"{one.name}, which {one.why}" for one in named)
    return f"Suspect, since it lies on the way: {listed}."


def remedies(named: list[Suspect]) -> str:
    """What to write instead, each once."""
    return " ".join(dict.fromkeys(one.remedy for one in named))


def _plain(name: str) -> str:
    plain = re.sub(r"(Ex)?Backward\w*$", "", re.sub(r"^(torch::autograd::)?_?(Linalg)?", "", name))
    return "ScaledDotProduct" if plain.startswith("ScaledDotProduct") else plain


def _is_smooth(power: Node) -> bool:
    """Whether its exponent, where that is a number, gives it a finite slope everywhere."""
    exponent = getattr(power, "_saved_exponent", None)  # a number outlives the backward pass, a tensor does not
    return isinstance(exponent, int | float) and (exponent >= 1 or exponent == 0)


def _is_empty(node: Node) -> bool:
    """Whether what the operation made has no entries."""
    made: Any = getattr(node, "_input_metadata", ())  # some releases of PyTorch do not tell
    return any(0 in one.shape for one in made)


def _is_of_several(spread: Node) -> bool:
    """Whether each standard deviation or variance is known to be that of several values."""
    below, place = spread.next_functions[0]
    made, given = (getattr(node, "_input_metadata", ()) for node in (spread, below))
    if len(made) != 1 or place >= len(given):
        return False
    return math.prod(given[place].shape) > max(math.prod(made[0].shape), 1)


def _divides_by_constant(node: Node) -> bool:
    """Whether the divisor needs no gradient: then a zero in it shows in the loss itself, unless
    something hides it on the way.
    """
    return len(node.next_functions) < 2 or node.next_functions[1][0] is None


def _own_function(node: Node) -> Suspect | None:
    if not isinstance(node, BackwardCFunction):
        return None
    made = getattr(node, "_forward_cls", type(node))
    if made.__module__.partition(".")[0] in ("torch", "lightning", "pytorch_lightning", "lightning_gradwatch"):
        return None
    return Suspect(
        f"your own autograd function {made.__name__}",
        "computes its gradient by a formula of its own",
        f"Look at the backward of {made.__name__}: a root, a logarithm or a division there must stay away from 0.",
    )
