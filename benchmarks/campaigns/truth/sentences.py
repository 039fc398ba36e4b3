"""Every sentence that was said of a run, read as claims, and each claim held against what is true of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from benchmarks.campaigns.truth.case import Case, Told, Truth
from benchmarks.campaigns.truth.oracle import Facts, LayerWeights
from lightning_gradwatch import Event
from lightning_gradwatch.events import closes_episode

VERDICT, NUMBER, REMEDY, MISS, UNREAD = "false verdict", "false number", "unfit remedy", "miss", "not judged"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a sentence: its sort is one of the columns of the table."""

    sort: str
    sentence: str
    why: str


@dataclass
class Context:
    """Of what a sentence speaks: a run, an event of it or a line, a place."""

    truth: Truth
    told: Told
    event: Event | None = None
    place: LayerWeights | None = None
    line: str = ""
    since: int | None = None
    faults: list[Fault] = field(default_factory=list)
    sentence: str = ""

    @property
    def case(self) -> Case:
        return self.truth.case

    def wrong(self, sort: str, why: str) -> None:
        """Note a fault of the sentence at hand."""
        self.faults.append(Fault(sort, self.sentence, why))

    def verdict(self, holds: bool, why: str) -> None:
        """A word that has to hold."""
        if not holds:
            self.wrong(VERDICT, why)

    def number(self, said: str | float, low: float, high: float, what: str, slack: float = 0.0) -> None:
        """A number that lies between two; ``slack`` is a share of it, for what was rounded."""
        value = float(str(said).replace(",", ""))
        room = slack * max(abs(low) if math.isfinite(low) else 0.0, abs(value))
        if not low - room <= value <= high + room:
            self.wrong(NUMBER, f"{what} is {low:.5g} to {high:.5g}")

    def steps(self) -> list[int]:
        """The steps that a claim may rest on: of an event its own and the samples before it, else every sample."""
        last = self.truth.steps - 1 if self.event is None else self.event.step
        return sorted({step for step in (*self.told.sampled, last) if 0 <= step <= last})

    def facts(self, place: LayerWeights | None = None, steps: Iterable[int] | None = None) -> list[Facts]:
        """What is true of the place at those steps."""
        wanted = place or self.place
        if wanted is None:
            return []
        return [
            one for step in (self.steps() if steps is None else steps) for one in self.truth.at(step).get(wanted, [])
        ]

    def between(
        self, of: Callable[[Facts], tuple[float, float] | None], steps: Iterable[int] | None = None
    ) -> tuple[float, float] | None:
        """The least and the largest that something may be at those steps; None where nothing is known."""
        found = [pair for one in self.facts(steps=steps) if (pair := of(one)) is not None]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else None


Check = Callable[[Context, dict[str, str]], None]

_PARTS = {
    "n": r"[-+]?(?:\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|inf|nan)",
    "int": r"\d[\d,]*",
    "place": r"[\w.]+(?:\[[^\]]*\])?(?: outside of the model)?(?: #\d+)?(?:, layer \d+)?(?: \(reverse\))?(?:, cell state)?"
    r"(?:, gate \w|, gate)?(?:, timestep \d+)?(?:, sequence \d+)?(?:, parameter [\w.]+)?",
    "name": r"[\w.]+",
    "verdict": r"(?:healthy(?: now)?(?:, but the loss has risen)?|vanishing|shortened|"
    r"exploding|not finite|undecided|not observed|barely reached|saturated|diverged"
    r"|nothing flows through time)(?: since step [\d,]+)?(?:, but nothing changes its weights)?",
    "weight": r"[\w.]+\[[\d, ]*\]",
    "kind": r"[A-Z_]+",
    "any": r".*?",
    "path": r"\S+",
    "how": r"it (?:keeps its size|fades, to (?:under )?[\d.]+ % with each|grows, (?:by [\d.e+]+ %|[\d.e+]+-fold) with each)",
    "pace": r"(?:faster|slower|it falls)",
    "entry": r"batch\S*?\[[\d, ]+\]",
    "list": r"[^.]*(?:\.[^\s][^.]*)*",
}


class Sentences:
    """What can be said: patterns of sentences, each with its check. ``<n:name>`` stands for a number that the check gets as ``name``,
    and what stands in «» may be left out."""

    def __init__(self) -> None:
        self._known: list[tuple[re.Pattern[str], Check]] = []

    def __call__(self, *patterns: str) -> Callable[[Check], Check]:
        def keep(check: Check) -> Check:
            self._known += [(re.compile(compiled(pattern)), check) for pattern in patterns]
            return check

        return keep

    def read(self, text: str, context: Context) -> int:
        """Judge a text sentence by sentence. Returns how many there were."""
        count, rest = 0, text.strip()
        while rest:
            count += 1
            found = [(m, check) for pattern, check in self._known if (m := pattern.match(rest))]
            if found:
                m, check = max(found, key=lambda one: one[0].end())
                context.sentence = m.group(0)
                check(context, {key: value for key, value in m.groupdict().items() if value is not None})
                rest = rest[m.end() :].lstrip()
            else:
                end = re.search(r"(?<!\bal)\.(?=\s+[A-Z`]|$)", rest)
                cut = end.end() if end else len(rest)
                context.sentence = rest[:cut]
                context.wrong(UNREAD, "no judge knows this sentence")
                rest = rest[cut:].lstrip()
        return count


def compiled(pattern: str) -> str:
    """A pattern as a regular expression that matches a whole sentence at the begin of what is left."""
    parts = re.split(r"<(\w+)(?::(\w+))?>", pattern)
    made = [re.escape(parts[0])]
    for sort, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        made.append(f"(?P<{name}>{_PARTS[sort]})" if name else f"(?:{_PARTS[sort]})")
        made.append(re.escape(text))
    return "".join(made).replace("«", "(?:").replace("»", ")?").replace(r"\ ", " ") + r"(?=\s|$)"


def place_of(words: str) -> LayerWeights | None:
    """``net.rnn, layer 1 (reverse)`` as module, layer and direction."""
    m = re.match(r"([\w.]+)(?:, layer (\d+)( \(reverse\))?)?", words)
    return None if m is None else (m[1], int(m[2] or 0), "reverse" if m[3] else "forward")


def texts(told: Told) -> Iterator[tuple[str, Event | None]]:
    """Everything that was said, each with the event that it belongs to."""
    for text in (*told.lines, *told.warnings):
        yield text, None
    advised: set[str] = set()
    for event in told.events:
        yield event.message, event
        if not (
            closes_episode(event.to_record()) and event.remedy in advised
        ):  # the end of an episode repeats what its begin said
            advised.add(event.remedy)
            yield event.remedy, event


@dataclass
class Judgement:
    """Of one run."""

    kind: str
    sentences: int
    faults: list[Fault]
    said: list[str]


def judged(
    truth: Truth, told: Told, words: Sentences, told_enough: Callable[[Truth, Told], Iterable[str]]
) -> Judgement:
    """Every sentence of a run held against the truth; and whether what had to be told was."""
    sentences, faults = 0, list[Fault]()
    for text, event in texts(told):
        context = Context(truth, told, event)
        if event is not None and event.module is not None:
            context.place = (event.module, event.layer or 0, event.direction or "forward")
        sentences += words.read(text, context)
        faults += context.faults
    faults += [Fault(MISS, "", why) for why in told_enough(truth, told)]
    said = [
        *told.lines,
        *told.warnings,
        *(f"{e.severity} {e.kind} step {e.step}: {e.message} -> {e.remedy}" for e in told.events),
    ]
    return Judgement(truth.case.kind, sentences, list(dict.fromkeys(faults)), said)


SAID = Sentences()
"""Everything that a judge knows."""
