"""When requests give up waiting: the time-outs of one node's clients (locks.md §1.6 TIMEOUT, pitfalls A10).

Only the node of a session looks at a clock. When a time has come the node asks for a cancel, in its place in the
order, so that all members agree whether the grant or the time-out came first (S69).
"""

from __future__ import annotations

import heapq
import itertools

from dlm.handle import Handle, Request

__all__ = ["Timers"]

SLACK = 64  #: entries of answered requests that are not worth a clean-up


class Timers:
    """Requests with a time-out, soonest first. Those answered meanwhile stay until they are met, or are many."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Handle, Request]] = []
        self._order = itertools.count()
        self._clean_at = SLACK

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, handle: Handle) -> None:
        """Watch the request of ``handle``, if it is still on its way and has a time-out."""
        request = handle.request
        if request is None or not request.deadline:
            return
        heapq.heappush(self._heap, (request.deadline, next(self._order), handle, request))
        if len(self._heap) > self._clean_at:
            self._heap = [entry for entry in self._heap if _waits(entry)]
            heapq.heapify(self._heap)
            self._clean_at = 2 * len(self._heap) + SLACK  # so that each clean-up was paid for by as many ``add``

    def next_deadline(self) -> int | None:
        """When the next request gives up."""
        while self._heap and not _waits(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: int) -> list[Handle]:
        """The handles whose requests give up by now, in the order of their times; each is named once."""
        found: list[Handle] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            found.append(heapq.heappop(self._heap)[2])
        return found


def _waits(entry: tuple[int, int, Handle, Request]) -> bool:
    return entry[2].request is entry[3] and not entry[2].ending
