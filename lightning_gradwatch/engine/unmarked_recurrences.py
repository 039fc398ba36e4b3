"""Recurrences in tensor operations, which only tap() and tap_scan() make measurable."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn

from lightning_gradwatch.engine.observation import Collector
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.recurrent import Capture
from lightning_gradwatch.recurrent.capture.cumulative import cumulative
from lightning_gradwatch.recurrent.capture.modules import plain_name
from lightning_gradwatch.recurrent.capture.severed import How
from lightning_gradwatch.recurrent.capture.unmarked import states_in, unmarked
from lightning_gradwatch.recurrent.capture.unmarked_severed import DETACHED, severed_uses
from lightning_gradwatch.recurrent.graph.between import MOST_NODES
from lightning_gradwatch.recurrent.graph.topology import Topology

PASSES = 4
"""So many backward passes of the first step are looked at; LBFGS makes more, all alike."""

_IF = 'If that is a loop over time, mark its state with tap(h, name="…") and it is measured.'

REMEDY = (
    'Once in each timestep of the loop: h = tap(h, name="…"), with tap from lightning_gradwatch. '
    "If it is a layer that is repeated in depth, or the like, there is nothing to do."
)

SCAN_REMEDY = (
    "Mark its states where they are computed: h = tap_scan(h, decay=a), or y = tap_scan(y, decay=a, readout=C) where a kernel hides them. "
    "If it is no scan, there is nothing to do."
)

_AS_IN_A_SCAN = "In one step {taken} is taken of what is made with this parameter, as in a scan over time."
_IF_SCAN = "If it is one, tap_scan() has it measured."

_TOO_LARGE = (
    f"The graph of the loss has more than {MOST_NODES:,} operations. It was not searched for recurrences that are written in "
    "tensor operations; those in modules are observed."
)
_TAP = 'If there is one, mark its state once in each timestep: h = tap(h, name="…").'


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """What a module computes with: its parameters, and what PyTorch's own goes on with where one
    was taken from it.
    """
    yield from module.parameters()
    for part in module.modules():
        yield from (weight for weight in getattr(part, "_flat_weights", ()) if isinstance(weight, Tensor))


class UnmarkedRecurrences:
    """Tells each once, by a parameter in it, as a note: it may be a layer that is repeated in
    depth.

    Args:
        model: whose parameters have names.
        collector: takes the events.

    Attributes:
        told: so far.
    """

    def __init__(self, model: nn.Module, collector: Collector) -> None:
        self._model, self._collector = model, collector
        self._left = PASSES
        self._severed: dict[str, How] = {}
        self.told: dict[str, Event] = {}

    def look(
        self,
        loss: Tensor,
        capture: Capture,
        numbers: Collection[int],
        known: Collection[str],
        like_scans: Collection[str],
        moment: Moment,
    ) -> None:
        """Tell those behind a loss, before its backward pass.

        Args:
            capture: has what is measured.
            numbers: of the places in the graph where cells that are not watched yet made their
                states.
            known: names of modules that are measured, or told, as what they are.
            like_scans: names of modules that are told as scans by their names.
        """
        if self._left <= 0:
            return
        self._left -= 1
        names = {id(parameter): plain_name(name) for name, parameter in self._model.named_parameters()}
        modules = [module for name, module in self._model.named_modules() if plain_name(name) in known]
        others = {id(weight) for module in modules for weight in _weights(module)}
        graph = Topology.of(loss, MOST_NODES)
        states = set[int]() if graph is None else states_in(graph, capture.read_calls(), numbers)
        recurrences = None if graph is None else unmarked(graph, states, names)
        if recurrences is None:
            self._tell("", moment, message=_TOO_LARGE, remedy=_TAP)
        for one in recurrences or ():
            if id(one.leaf) not in others:
                self._tell(one.name, moment, module=one.name, detail=f"{one.what} {_IF}", remedy=REMEDY)
        if graph is not None and not capture.marked:
            self._tell_scans(graph, names, others, like_scans, moment)
        for uses in () if graph is None else severed_uses(graph, states):
            if id(uses.leaf) in names.keys() - others:
                self._severed.setdefault(names[id(uses.leaf)], How(DETACHED.format(count=uses.count)))

    def _tell_scans(
        self,
        graph: Topology,
        names: Mapping[int, str],
        others: Collection[int],
        like_scans: Collection[str],
        moment: Moment,
    ) -> None:
        for taken, leaf in cumulative(graph):
            name = names.get(id(leaf))
            if name is None or id(leaf) in others or any(name.startswith(f"{one}.") for one in like_scans):
                continue
            detail = f"{_AS_IN_A_SCAN.format(taken=taken)} {_IF_SCAN}"
            self._tell(name, moment, module=name, detail=detail, remedy=SCAN_REMEDY)

    def end_severed(self, told: Collection[str]) -> Mapping[str, How]:
        """The parameters of recurrences whose state is severed, once the first step is over.

        Args:
            told: modules and taps of which that is told already; a tap marks such a recurrence, and
                nothing says which parameters are in it.
        """
        severed, self._severed = self._severed, {}
        if set(told).difference(plain_name(name) for name, _ in self._model.named_modules()):
            return {}
        return {name: how for name, how in severed.items() if not any(name.startswith(f"{one}.") for one in told)}

    def _tell(self, name: str, moment: Moment, **fields: str) -> None:
        if name not in self.told:
            self.told[name] = moment.event(EventKind.NOT_OBSERVED, severity=Severity.INFO, **fields)
            self._collector.add(self.told[name])
