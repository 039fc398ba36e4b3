"""The norms of a step, of which a jump is told once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from lightning_gradwatch.detect.loss_scale import Multiplied
from lightning_gradwatch.detect.norm_jump import NormJumpDetector, perhaps, unknown
from lightning_gradwatch.events import Event, Moment, closes_episode


class NormJumps:
    """The norm of the recurrent modules' gradients and that of all parameters, judged
    side by side; one event for both.

    Of the whole there is one series for each backward pass within a batch: where the training calls
    backward by itself, the gradients that earlier passes left are among them.
    """

    def __init__(self) -> None:
        self._recurrent = NormJumpDetector()
        self._whole: defaultdict[int, NormJumpDetector] = defaultdict(NormJumpDetector)
        self._told: NormJumpDetector | None = None  # whose episode is the one that was told

    def __call__(
        self,
        recurrent: float,
        whole: float,
        nth: int,
        moment: Moment,
        detail: Callable[[bool], str],
        *,
        loss: float | None = None,
        multiplied: Callable[[], Multiplied | None] = unknown,
        moved: Callable[[], bool] = perhaps,
    ) -> Event | None:
        """Take in one step's norms. Returns the event of a jump that begins here, or
        the record of one that ends here.

        Args:
            nth: which backward pass of the batch it is.
            detail: what there is to say of the step, by whether it is
                about the recurrent modules alone.
            loss, multiplied, moved: as for :class:`NormJumpDetector`.
        """
        of_recurrent, every = self._recurrent, self._whole[nth]
        by_detector = [
            (
                of_recurrent,
                of_recurrent(recurrent, moment, lambda: detail(True), loss=loss, multiplied=multiplied, moved=moved),
            ),
            (every, every(whole, moment, lambda: detail(False), loss=loss, multiplied=multiplied, moved=moved)),
        ]
        told = [event for detector, event in by_detector if event is not None and self._is_told(detector, event)]
        return told[0] if told else None

    def overflowed(self, whole: float, limit: float, nth: int, moment: Moment, detail: str) -> Event | None:
        """Take in a norm whose squares overflow."""
        event = self._whole[nth].overflowed(whole, limit, moment, detail)
        return event if event is not None and self._is_told(self._whole[nth], event) else None

    def finish(self, moment: Moment) -> list[Event]:
        """What is still to be told when training ends, of the one that was told or of the first
        that has something to tell."""
        asked = [*self._whole.values(), self._recurrent] if self._told is None else [self._told]
        return next((events for one in asked if (events := one.finish(moment))), [])

    def _is_told(self, detector: NormJumpDetector, event: Event) -> bool:
        """Whether an event is no mere echo of an episode that another of the series began."""
        ends = closes_episode(event.to_record())
        if self._told is not (detector if ends else None):
            return False
        self._told = None if ends else detector
        return True
