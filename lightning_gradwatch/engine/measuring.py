"""How the calls of a sampled step are measured, and what the detectors make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from lightning_gradwatch.detect import RecurrentWeights
from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.observation import Collector
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.engine.profile_detectors import ProfileDetectors
from lightning_gradwatch.engine.unobserved import Unobserved
from lightning_gradwatch.events import Event, Moment
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent import (
    Capture,
    Chain,
    Loop,
    RecurrentCall,
    follow,
    measure_calls,
    measure_lags,
    stitch,
)
from lightning_gradwatch.recurrent.capture.duplicates import without_duplicates
from lightning_gradwatch.recurrent.capture.taken import Call
from lightning_gradwatch.recurrent.measure.beyond import Window


class Measuring:
    """Of one fit. A loop is somebody's own, and may be beyond what was thought of: an
    error about one leaves it out.

    Args:
        model: whose calls they are.
        capture: knows the modules.
        unobserved: takes note of what could not be measured.
        collector: takes the profiles, and what is to be said of them.
    """

    def __init__(
        self, model: nn.Module, capture: Capture, unobserved: Unobserved, options: WatchOptions, collector: Collector
    ) -> None:
        self._model, self._capture, self._unobserved, self._collector = model, capture, unobserved, collector
        self._max_sequences, self._anchors = options.max_sequences, options.anchors
        self._influence = options.influence
        self._unannounced = options.unannounced
        self._windows: dict[str, Window] = {}
        self._detectors, self._recurrent_weights = ProfileDetectors(options.detectors), RecurrentWeights()

    def follow(self, loss: Tensor) -> None:
        """Before the backward pass of a sampled step: have it follow
        the loss back through the loops.
        """
        calls = without_duplicates(self._capture.read_calls())
        for call in calls:
            if isinstance(call, Loop) and len(call.h) > 1:
                with self._unobserved.isolated(call.module):
                    measure_lags(call, loss)
        for call in stitch(calls):
            if isinstance(call, Chain) and not call.plain:
                with self._unobserved.isolated(call.module):
                    follow(call.calls, loss)

    def sample(self, calls: Sequence[Call], step: Step, *, everything: bool = False) -> bool:
        """Measure the calls, in ``everything`` all sequences; so too where the growth
        through time turns out suspicious. Returns whether every hidden-state gradient is finite.
        """
        unscale, stitched = step.unscale(), stitch(without_duplicates(calls))
        for chain in stitched if step.sampled else ():
            if isinstance(chain, Chain):
                chain.unfollowed = self._unannounced
        profiles = self._measure(stitched, None if everything else self._max_sequences)
        if any(self._detectors.exploding.suspects(profile) for profile in profiles):
            self._collector.suspicious = True
            profiles = profiles if everything else self._measure(stitched, None)
        profiles = [profile.scaled(unscale) for profile in profiles]
        self._collector.add_sample(profiles, step)
        self._look_at_recurrent_weights(calls, step.moment)
        self._judge(profiles, replace(step.moment, loss=step.loss_value()))
        return not any(np.isinf(profile.total_max()).any() for profile in profiles)

    def keep_windows(self, calls: Sequence[Call], step: Step) -> None:
        """Keep what the next sampled step can look back into, where this step is the one before it;
        nothing otherwise.
        """
        if not (step.sampled or step.is_eve):
            self._windows.clear()
            return
        counts = Counter(call.module for call in calls)
        for call in calls:
            window = Window.of(call) if isinstance(call, RecurrentCall) and counts[call.module] == 1 else None
            self._windows.pop(call.module, None)
            if window is not None:
                self._windows[call.module] = window

    def confirmed(self) -> list[Event]:
        """Numbers stopped being finite: the growth through time that was
        suspicious before is beyond doubt.
        """
        return self._detectors.exploding.confirmed()

    def finish(self, moment: Moment) -> None:
        """Training is over: what the detectors have still to say."""
        for event in self._detectors.finish(moment):
            self._collector.add(event)

    def _measure(self, calls: Sequence[Call | Chain], max_sequences: int | None) -> list[Profile]:
        """The profiles of all that can be measured."""
        measured: list[Profile] = []
        alone = Counter(call.module for call in calls)
        for call in calls:
            with nullcontext() if isinstance(call, RecurrentCall) else self._unobserved.isolated(call.module):
                before = self._windows.get(call.module) if alone[call.module] == 1 else None
                profiles = measure_calls([call], max_sequences, self._anchors, influence=self._influence, before=before)
                measured += [replace(profile, step=call.step) for profile in profiles]
        self._unobserved.measured.update(profile.module for profile in measured)
        return measured

    def _judge(self, profiles: Sequence[Profile], moment: Moment) -> None:
        for profile in profiles:
            then = moment if profile.step is None else replace(moment, step=profile.step)
            for event in self._detectors(profile, then):
                self._collector.add(event)

    def _look_at_recurrent_weights(self, calls: Sequence[Call], moment: Moment) -> None:
        trained = {id(parameter) for parameter in self._model.parameters()}
        for call in calls:
            module = self._capture.modules.get(call.module)
            if isinstance(call, RecurrentCall) and isinstance(module, nn.RNNBase):
                for event in self._recurrent_weights(call, module, trained, moment):
                    self._collector.add(event)
