"""What a fit and a loop have in common while they are watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress

from torch import nn

from lightning_gradwatch.audit import ClipEvidence
from lightning_gradwatch.engine.observation import Cells, Observation
from lightning_gradwatch.engine.watch import Watch
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.findings.clip_verdicts import ClipNews, keep_clipping, tell_clipping
from lightning_gradwatch.findings.findings import Findings
from lightning_gradwatch.recurrent.capture.modules import describe


class Watching:
    """The engine and what takes its findings, from the start of one fit, or of one
    ``with watch(…)``, to its end.

    Args:
        findings: takes what is found, and outlives the watching.
        out_of_reach: why a module cannot be measured; None where it can.

    Attributes:
        watch: the engine; None before, and where nothing is watched any more.
        has_unreachable: whether any module could not be measured.
    """

    def __init__(self, findings: Findings, out_of_reach: Callable[[nn.Module], str | None]) -> None:
        self._findings, self._out_of_reach = findings, out_of_reach
        self.watch: Watch | None = None
        self.has_unreachable = False
        self._news = ClipNews()
        self._nothing_said = self._suspicious = False

    # ------------------------------------------------------------------ what cannot be measured

    def unreachable(self, modules: Mapping[str, nn.Module]) -> dict[str, str]:
        """Those that cannot be measured, with the reason."""
        reasons = {name: self._out_of_reach(module) for name, module in modules.items()}
        found = {name: reason for name, reason in reasons.items() if reason is not None}
        self.has_unreachable |= bool(found)
        return found

    def report_unreachable(self, reasons: Mapping[str, str], moment: Moment) -> None:
        """An event for each module that cannot be measured."""
        for name, reason in reasons.items():
            detail = f"{reason[0].upper()}{reason[1:]}."
            self._findings.take_event(moment.event(EventKind.NOT_OBSERVED, module=name, detail=detail))

    def adopt(self, watch: Watch, cells: Cells) -> dict[str, str]:
        """Watch the cells that the first step showed. Returns those that cannot be
        measured, with the reason.
        """
        unreachable = self.unreachable({name: module for name, (module, _) in cells.items()})
        watch.adopt({name: cell for name, cell in cells.items() if name not in unreachable})
        return unreachable

    # ------------------------------------------------------------------ while it goes on

    def take(self, seen: Observation) -> Observation:
        """Record what the engine returned."""
        self._suspicious |= seen.suspicious
        self._findings.take(seen)
        return seen

    def is_suspicious(self) -> bool:
        """Whether anything was out of the ordinary since this was last asked."""
        suspicious, self._suspicious = self._suspicious, False
        return suspicious

    def keep_clipping(self, samples: int, evidence: Callable[[], Sequence[ClipEvidence]]) -> None:
        """Record what is known of clipping so far, if so many samples are worth it."""
        if self._news(samples):
            keep_clipping(self._findings, evidence())

    def advice_on_nothing(self, watch: Watch) -> str | None:
        """Where there is nothing to watch, what may be done, which is empty where nothing is known;
        None elsewhere, and where this was asked before.
        """
        if not watch.has_nothing() or self.has_unreachable or self._nothing_said:
            return None
        self._nothing_said = True
        return " ".join(map(_advice, watch.unmarked))

    # ------------------------------------------------------------------ its end

    def conclude(
        self, moment: Moment, clipping: Callable[[], Sequence[ClipEvidence]] | None, *, write: bool, broken_off: bool
    ) -> bool:
        """Gather what is left to be found. Returns whether there is anything to be said at the end.

        Args:
            moment: the last one.
            clipping: gives what was seen of it; None where nobody looked.
            write: whether this rank writes what is said of clipping.
            broken_off: by an error, which may keep us from looking once more: a device
                without memory, or one that failed.
        """
        watch, findings = self.watch, self._findings
        if watch is None:
            return False
        findings.steps = moment.step + 1
        with suppress(Exception) if broken_off else nullcontext():
            findings.take(watch.finish(moment))
            findings.note_truncation()
            if clipping is not None:
                tell_clipping(findings, clipping(), moment, write=write)
        findings.take(watch.take())  # what was found before an error in the midst of it
        if watch.steps or not broken_off:
            findings.take(Observation(events=tuple(watch.unobserved(moment))))
        nothing = watch.has_nothing() and not self.has_unreachable
        return bool((findings.events or not nothing) and (watch.steps or findings.events or not broken_off))

    def end(self) -> None:
        """Take the hooks off, and write what was observed. Calling it again does nothing."""
        watch, self.watch = self.watch, None
        if watch is None:
            return
        with suppress(Exception):  # it may be the findings that failed
            self._findings.take(watch.take())
        watch.close()
        if self._findings.log is not None:
            self._findings.log.meta({"modules": describe(watch.capture.modules, watch.observed)})


def _advice(event: Event) -> str:
    return f"{event.message} {event.remedy}"
