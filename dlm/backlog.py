"""Answers that are decided and may not be told yet, by what they wait for (``dlm.withheld``).

What waits for time, a view or a lease is looked at again often, so what may wait for hours is kept apart from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from dlm.handle import Handle
from dlm.withheld import FAILURE, STABLE

__all__ = ["Backlog"]

Waiting = dict[tuple[int, int], Handle]  #: by session and number, oldest first


class Backlog:
    """Handles with an outcome, of one node's clients."""

    def __init__(self) -> None:
        self.soon: Waiting = {}  #: for a view, a lease, or the horizon
        self.unsettled: Waiting = {}  #: until all members have what decided it
        self.unsettled_since = 0  #: when the first of those, or of ``writes``, came
        self.failed: Waiting = {}  #: for what a failure needs
        #: Releases that have written value blocks: (position of the table, session, request).
        self.writes: deque[tuple[int, int, int]] = deque()

    def __len__(self) -> int:
        return len(self.soon) + len(self.unsettled) + len(self.failed)

    def __iter__(self) -> Iterator[Handle]:
        for waiting in (self.soon, self.unsettled, self.failed):
            yield from waiting.values()

    def add(self, handle: Handle, why: str, now: int) -> None:
        """Keep it, for this reason of ``dlm.withheld``."""
        if why == STABLE:
            self._one_more(now)
        waiting = self.unsettled if why == STABLE else self.failed if why == FAILURE else self.soon
        waiting[handle.session, handle.h] = handle

    def wrote(self, position: int, session: int, rid: int, now: int) -> None:
        """Keep the answer to a release that has written a value block at this position of the table."""
        self._one_more(now)
        self.writes.append((position, session, rid))

    def _one_more(self, now: int) -> None:
        if not self.unsettled and not self.writes:
            self.unsettled_since = now

    def forget(self, handle: Handle) -> None:
        """The handle has ended."""
        if not (self.soon or self.unsettled or self.failed):
            return
        for waiting in (self.soon, self.unsettled, self.failed):
            if waiting.get((handle.session, handle.h)) is handle:
                del waiting[handle.session, handle.h]

    def clear(self) -> None:
        """Nothing of it will be told."""
        for waiting in (self.soon, self.unsettled, self.failed):
            waiting.clear()
        self.writes.clear()

    def take_all(self) -> list[Handle]:
        """All of them, to be looked at again."""
        taken = list(self)
        for waiting in (self.soon, self.unsettled, self.failed):
            waiting.clear()
        return taken

    def take_soon(self) -> list[Handle]:
        """Those that wait for a lease, a view, or the horizon."""
        taken, self.soon = list(self.soon.values()), {}
        return taken

    def take_failed(self) -> list[Handle]:
        """Those that wait for what a failure needs."""
        taken, self.failed = list(self.failed.values()), {}
        return taken

    def take_settled(self, applied: int) -> list[Handle]:
        """Those that waited until all members have this position of the table."""
        taken: list[Handle] = []
        for handle in self.unsettled.values():
            if handle.after > applied:
                break
            taken.append(handle)
        for handle in taken:
            del self.unsettled[handle.session, handle.h]
        return taken

    def take_writes(self, applied: int | None) -> Iterator[tuple[int, int]]:
        """Session and request of each release whose write all members have at this position (``None``: all)."""
        writes = self.writes
        while writes and (applied is None or writes[0][0] <= applied):
            yield writes.popleft()[1:]
