"""What comes for one who takes it one by one: a queue that the taker fills by reading, where the channel lets it.

A frame may be dealt with twice when the thread that reads is interrupted (``vsync.turns``), so what comes of it has
the frame's number and counts once.
"""

from __future__ import annotations

import contextlib
import threading
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from vsync.turns import Turns

__all__ = ["Arrivals"]

T = TypeVar("T")


class Arrivals(Generic[T]):
    """Thread-safe. ``turns``: of the channel whose frames fill it; ``None`` if those that wait do not read."""

    def __init__(self, turns: Turns | None) -> None:
        self.thread = 0  #: the thread that waits, or has
        self.token: threading.Lock | None = None  #: released to wake it
        self._turns = turns
        self._taking = threading.RLock()  # held by who takes
        self._queue: SimpleQueue[tuple[int, T]] = SimpleQueue()
        self._last = 0  # number of the frame whose item was taken last

    @property
    def over(self) -> bool:
        """There is something."""
        return not self._queue.empty()

    def put(self, item: T, frame: int = 0) -> None:
        """Append what came by that frame; 0: by none."""
        self._queue.put((frame, item))
        self.wake()

    def take(self) -> T:
        """The next one, waited for."""
        if self._turns is None:
            return self._queue.get()[1]
        with self._taking:
            while True:
                try:
                    frame, item = self._queue.get_nowait()
                except Empty:
                    self._turns.wait(self, None)
                    continue
                if not frame:
                    return item
                if frame > self._last:
                    self._last = frame
                    return item

    def wake(self) -> None:
        """Let the thread that waits look again."""
        if self.token is not None:
            with contextlib.suppress(RuntimeError):  # it was woken before and has not looked yet
                self.token.release()
