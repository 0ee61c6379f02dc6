"""Virtual time: a heap of (time, serial, event). The serial makes ties deterministic."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

__all__ = ["Scheduler"]


class Scheduler:
    """The one clock of a simulated world, in µs of *true* time, and what is going to happen in it.

    Nodes never see this clock: each has its own, with an offset and a drift (``SimNode.clock``).
    """

    def __init__(self) -> None:
        self.now = 0
        self.steps = 0  #: events handled so far
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def at(self, time: int, event: Callable[..., None], *args: Any) -> None:
        """Call ``event(*args)`` at ``time``, or now if that is past. Events are not cancelled: they check."""
        self._serial += 1
        heapq.heappush(self._heap, (max(time, self.now), self._serial, event, args))

    def after(self, delay: int, event: Callable[..., None], *args: Any) -> None:
        """Call ``event(*args)`` in ``delay`` µs."""
        self.at(self.now + delay, event, *args)

    def step(self, until: int) -> bool:
        """Handle the earliest event if it is not later than ``until``; else move the clock there."""
        if not self._heap or self._heap[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now, _, event, args = heapq.heappop(self._heap)
        self.steps += 1
        event(*args)
        return True
