"""Telling holders whom they block: when, and when it is not worth telling (locks.md §1.10, B6–B10).

Advice is lost with its lock and never changes anything; so it may be merged, and at most one piece of it waits per
lock. It never overtakes the completion it belongs to (A1), and nothing is told while a view is being installed or
the primary component is gone (B8).
"""

from __future__ import annotations

from dlm.handle import Handle
from dlm.modes import COMPATIBLE, NONE, PR
from vsync.service import Host

__all__ = ["Advice"]


class Advice:
    """What the clients of one node are still to be told."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._waiting: dict[tuple[int, int], Handle] = {}
        #: Told, cached and not heard of since: the clients have to say whether they are in use. Oldest first.
        self.unanswered: dict[tuple[int, int], tuple[int, Handle]] = {}

    def note(self, handle: Handle, mode: int) -> None:
        """The handle blocks a request for ``mode``. What waits already is merged with it (B9)."""
        if not PR < handle.blocking >= mode:
            handle.blocking = mode
        self._waiting[handle.session, handle.h] = handle

    def completed(self, handle: Handle) -> None:
        """A completion was told: what is said next does not follow the last advice any more (B6)."""
        handle.advised = NONE

    def forget(self, handle: Handle) -> None:
        """The handle has ended (B10)."""
        self._waiting.pop((handle.session, handle.h), None)
        self.answered(handle)

    def answered(self, handle: Handle) -> None:
        """Its client has said that it is in use, or has ended it."""
        self.unanswered.pop((handle.session, handle.h), None)

    def clear(self) -> None:
        """The life has ended, and every handle with it."""
        self._waiting.clear()
        self.unanswered.clear()

    def tell(self, now: int) -> None:
        """Push what may be told now; called when messages may leave."""
        if not self._waiting:
            return
        for key, handle in list(self._waiting.items()):
            if handle.outcome is not None or handle.mode == NONE:
                continue  # not before its own completion (A1)
            del self._waiting[key]
            mode, handle.blocking = handle.blocking, NONE
            if not handle.ending and not self._stale(handle, mode):
                handle.advised = mode
                if handle.cached:
                    self.unanswered.setdefault(key, (now, handle))
                self._host.push(handle.session, "dlm", "blocking", {"h": handle.h, "mode": mode})

    @staticmethod
    def _stale(handle: Handle, mode: int) -> bool:
        """Whether the holder has made room already, or was told just that, or more, last (B6)."""
        if COMPATIBLE[handle.mode][mode]:
            return True
        return handle.advised == mode or handle.advised > max(mode, PR)
