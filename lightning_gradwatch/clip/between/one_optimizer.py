"""What is known of the gradients of one optimizer, while a fit goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.audit import ClipSample
from lightning_gradwatch.clip.between.gradients import Gradients, Marks, differ, marks, same, sample_of
from lightning_gradwatch.clip.between.parameters import parameters_of
from lightning_gradwatch.clip.between.parts import Norms, Parts, holders


@dataclass(slots=True)
class Look:
    """One optimizer step that is looked at: its gradients after the backward pass, when they were
    unscaled, and when the optimizer got them.

    Args:
        scale: the gradient scaler's factor, where there is one; ``inside``: it was still in the
            gradients when the optimizer got them, and ``between``, when it was taken out, is None.
    """

    step: int
    before: Gradients
    after: Gradients
    between: Gradients | None
    scale: Tensor | float
    inside: bool

    def ready(self) -> bool:
        """Whether :meth:`sample` need not wait for the device."""
        return self.before.ready() and self.after.ready()

    def sample(self, whole: tuple[Norms, Norms] | None = None) -> ClipSample | None:
        """What it showed.

        Args:
            whole: as for :func:`sample_of`.
        """
        late = self.inside or (self.between is not None and not same(self.before, self.between))
        return sample_of(self.step, self.before, self.after, float(self.scale) if late else 1.0, whole)


@dataclass(slots=True)
class AuditedOptimizer:
    """Of one fit.

    Args:
        index: which of the Trainer's it is.
        every: steps from one that is looked at to the next.
        since: the first step that can be looked at.
        name: of the optimizer, the same on every process, where its gradients are sharded.

    Attributes:
        steps: that it took in this fit.
        backward: its gradients after the last backward pass, on a step that is looked at.
        at_backward: how many backward passes there had been at its last step.
        elsewhere: steps at which others' gradients had been written to in its stead, for nothing.
        looked: how many steps were looked at; ``bare``: on how many no parameter had a gradient.
        probes: further gradients of these steps, which were not looked at.
        parts: of sharded gradients; None where they are whole.
        scattered: whether they are sharded so that no one process can put them together.
    """

    index: int
    optimizer: Optimizer
    every: int
    since: int = 0
    name: str = ""
    steps: int = 0
    backward: Gradients | None = None
    scale: Tensor | float = 1.0
    between: Gradients | None = None
    at_backward: int = -1
    samples: list[ClipSample] = field(default_factory=list[ClipSample])
    stale: int = 0
    elsewhere: set[int] = field(default_factory=set[int])
    looked: int = 0
    bare: int = 0
    probes: int = 0
    parts: Parts | None = None
    scattered: bool = False
    _given: dict[int, Look] = field(default_factory=dict[int, Look])
    _looks: list[Look] = field(default_factory=list[Look])
    _left: Marks = field(default_factory=dict[int, tuple[int, int]])
    _looked_at: int = -1

    @property
    def due(self) -> bool:
        """Whether the next step is to be looked at."""
        return (self.steps - self.since) % self.every == 0 and not self.is_looked_at

    @property
    def is_looked_at(self) -> bool:
        """Whether the next step has been, as where its closure makes another gradient."""
        return self._looked_at == self.steps

    @property
    def parameters(self) -> list[Tensor]:
        """All that it trains."""
        return parameters_of(self.optimizer)

    def begin_batch(self) -> None:
        """Note what the step before left, to see whether somebody writes to it before it is thrown
        away. The first step leaves nothing; the second is looked at so that a short run is, too.
        """
        self.backward = self.between = None
        self._left = marks(self.parameters) if self.steps and (self.due or self.steps == 1) else {}

    def before_zero_grad(self) -> None:
        """What the step before left is thrown away."""
        left, self._left = self._left, {}
        self.stale += bool(left) and differ(left, marks(self.parameters))

    def arrived(self, scale: Tensor | float) -> None:
        """A backward pass is over."""
        self.backward, self.scale, self.between = Gradients(self.parameters, scale), scale, None

    def unscaled(self) -> None:
        """The gradient scaler has taken its factor out, and nobody else has been called since."""
        if self.backward is not None:
            self.between = Gradients(self.parameters)

    def unscales(self) -> None:
        """The gradient scaler is about to take its factor out."""
        if self.backward is not None:
            self.between = Gradients(self.parameters, self.scale)

    def is_untouched(self) -> bool:
        """Whether nothing wrote to its gradients since the last backward pass."""
        return self.backward is not None and not differ(self.backward.marks, marks(self.parameters))

    def gets(self, *, inside: bool) -> None:
        """The optimizer gets its gradients.

        Args:
            inside: with the gradient scaler's factor in them.
        """
        before, between, self.backward, self.between = self.backward, self.between, None, None
        if before is None:
            return
        self._looked_at = self.steps
        after = Gradients(self.parameters, self.scale if inside else 1.0)
        self.looked += 1
        self.bare += not after.marks
        self._looks.append(Look(self.steps, before, after, between, self.scale, inside))

    def read(self, *, wait: bool) -> None:
        """Take what has arrived from the device; with ``wait``, everything."""
        while self._looks and (wait or self._looks[0].ready()):
            look = self._looks.pop(0)
            if look.before.sharded or look.after.sharded:
                self._give(look)
            else:
                self._keep(look.sample())
        if self.parts is not None:
            self._take(self.parts, wait=wait)

    def _keep(self, sample: ClipSample | None) -> None:
        if sample is not None:
            self.samples.append(sample)

    def _give(self, look: Look) -> None:
        """Tell the other processes what this one holds of sharded gradients."""
        places = {id(weight): place for place, weight in enumerate(self.parameters)}
        before, after = look.before.part(places), look.after.part(places)
        ranks = holders(self.parameters) if self.parts is None else []
        if before is None or after is None or ranks is None:
            self.scattered = True
            return
        self.parts = self.parts or Parts(self.name, ranks)
        self.parts.give(look.step, before, after)
        self._given[look.step] = look

    def _take(self, parts: Parts, *, wait: bool) -> None:
        """Keep what has arrived from all processes."""
        ids = [id(weight) for weight in self.parameters]
        for step, before, after in parts.take(wait=wait):
            whole = tuple({ids[place]: norm for place, norm in norms.items()} for norms in (before, after))
            self._keep(self._given.pop(step).sample((whole[0], whole[1])))
        if parts.missing or not parts.collects:
            self._given.clear()


def touched(others: Iterable[AuditedOptimizer], backward: int) -> list[AuditedOptimizer]:
    """Those whose gradients were written to since backward pass number ``backward``, and that have
    made no step since: some write to their gradients in their step.
    """
    return [
        one for one in others if one.at_backward != backward and one.backward is not None and not one.is_untouched()
    ]
