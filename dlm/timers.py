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
LOOKED_AT = 4  #: older entries with each new one, while there is a clean-up
MET = 64  #: entries of answered requests that are dropped at once

Entry = tuple[int, int, Handle, Request]


class Timers:
    """Requests with a time-out, soonest first. Those answered meanwhile stay until they are met, or are many.

    No call takes longer because there are many: a clean-up goes on with each ``add``, a few entries at a time.
    """

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._older: list[Entry] = []  #: another heap, of those that the clean-up has still to look at
        self._order = itertools.count()
        self._clean_at = SLACK
        self._waiting = 0  #: those that the clean-up has found so far

    def __len__(self) -> int:
        return len(self._heap) + len(self._older)

    def add(self, handle: Handle) -> None:
        """Watch the request of ``handle``, if it is still on its way and has a time-out."""
        request = handle.request
        if request is None or not request.deadline:
            return
        heapq.heappush(self._heap, (request.deadline, next(self._order), handle, request))
        if self._older:
            self._clean()
        elif len(self._heap) > self._clean_at:
            self._heap, self._older, self._waiting = [], self._heap, 0

    def _clean(self) -> None:
        for _ in range(min(LOOKED_AT, len(self._older))):
            entry = self._older.pop()  # the last one: what is left is still a heap
            if _waits(entry):
                self._waiting += 1
                heapq.heappush(self._heap, entry)
        if not self._older:
            self._clean_at = 2 * self._waiting + SLACK  # so that each clean-up was paid for by as many ``add``

    def next_deadline(self) -> int | None:
        """When the next request gives up, or earlier: then nothing is due yet."""
        for _ in range(MET):
            heap = self._first()
            if heap is None or _waits(heap[0]):
                break
            heapq.heappop(heap)
        heap = self._first()
        return heap[0][0] if heap is not None else None

    def _first(self) -> list[Entry] | None:
        """The heap with the next entry on it."""
        if self._heap and self._older:
            return self._heap if self._heap[0] < self._older[0] else self._older
        return self._heap or self._older or None

    def due(self, now: int, most: int) -> list[Handle]:
        """The handles whose requests give up by now, in the order of their times, each once; after looking at
        ``most`` entries the others have to be asked for again.
        """
        found: list[Handle] = []
        for _ in range(most):
            heap = self._first()
            if heap is None or heap[0][0] > now:
                break
            entry = heapq.heappop(heap)
            if _waits(entry):
                found.append(entry[2])
        return found


def _waits(entry: Entry) -> bool:
    return entry[2].request is entry[3] and not entry[2].ending
