"""Messages of a group member on their way to its node: many of them in one request, and one request at a time.

A message is sent at once if nothing is under way; what is sent meanwhile goes together when the node has accepted
that. So a lone message waits for nothing, and a busy sender costs the node little for each one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgpack

from vsync.answer import Answer
from vsync.errors import Backpressure, MessageTooLarge, NotConnected, NotMember, RequestFailed, VsyncError
from vsync.types import MAX_MESSAGE

__all__ = ["KINDS", "Outgoing"]

BATCH = 48_000  #: bytes of messages in one request: less than a packet, unless one alone is larger
MOST = 4096  #: messages in one request
HEAD = 40  #: bytes that a message alone in its batch takes besides, at most
ROOM = 1 << 20  #: bytes that may wait

KINDS: dict[str, type[VsyncError]] = {
    "too_large": MessageTooLarge, "backpressure": Backpressure, "not_member": NotMember,
}  # fmt: skip


@dataclass(slots=True)
class _Batch:
    """Messages of one order that go together, and how many bytes they are."""

    messages: list[bytes]
    size: int
    order: str


class Outgoing:
    """What one member sends, in order. Thread-safe."""

    def __init__(
        self,
        transmit: Callable[[bytes, str], Future[Any]],
        head: int = 0,
        attend: Callable[[], None] = lambda: None,
    ) -> None:
        """``transmit`` sends a request with a batch (msgpack, a list of bytes) and its order; ``head``: bytes that
        are added to it. ``attend`` is called when a thread waits here for its answer.
        """
        self._attend = attend
        self._limit = MAX_MESSAGE - HEAD - head
        self._transmit = transmit
        # A plain lock: unlike that of a Condition, ``with`` cannot be interrupted between taking and having it, and
        # the node's thread must not meet one that was left behind.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[_Batch] = deque()
        self._size = 0  #: bytes that wait
        self._under_way = False
        self._number = 0  # of the last batch
        self._failed: Exception | None = None

    def add(self, data: bytes, order: str, timeout: float | None) -> None:
        """Send it, when its turn comes. Waits for room.

        Raises ``MessageTooLarge``, ``Backpressure`` if there is no room within ``timeout`` seconds, and what became
        of an earlier message that was not accepted (``NotMember``, ``NotConnected``).
        """
        if len(data) > self._limit:
            raise MessageTooLarge(f"message of {len(data)} bytes; with its head the limit is {MAX_MESSAGE}")
        with self._lock:
            if self._size >= ROOM:
                self._wait_room(timeout)
            if self._failed is not None:
                self._raise_failure()
            self._put(data, order)
            if self._under_way:
                return
            self._under_way = True
            batch = self._take()
        self._send(batch)

    def flush(self, timeout: float | None = None) -> None:
        """Return when all has been accepted. Raises as ``add``."""
        limit = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while self._under_way and self._failed is None:
                self._attend()
                if not self._changed.wait(None if limit is None else max(0.0, limit - time.monotonic())):
                    raise TimeoutError("the node has not accepted what was sent before")
            self._raise_failure()

    def end(self, error: Exception) -> None:
        """Nothing is sent any more; whoever tries is told why."""
        with self._lock:
            self._failed = self._failed or error
            self._waiting.clear()
            self._size = 0
            self._changed.notify_all()

    def _wait_room(self, timeout: float | None) -> None:
        self._attend()
        if not self._changed.wait_for(lambda: self._size < ROOM or self._failed is not None, timeout):
            waiting = sum(len(batch.messages) for batch in self._waiting)
            raise Backpressure(f"{waiting} messages wait for the node")

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise type(self._failed)(str(self._failed))

    def _put(self, data: bytes, order: str) -> None:
        """Behind what waits: with the last ones, if it goes together with them."""
        size = len(data)
        self._size += size
        if self._waiting:
            last = self._waiting[-1]
            if last.order == order and last.size + size <= BATCH and len(last.messages) < MOST:
                last.messages.append(data)
                last.size += size
                return
        self._waiting.append(_Batch([data], size, order))

    def _take(self) -> _Batch:
        """The next messages that go together."""
        batch = self._waiting.popleft()
        self._number += 1
        full = self._size >= ROOM
        self._size -= batch.size
        if full:
            self._changed.notify_all()
        return batch

    def _send(self, batch: _Batch) -> None:
        number = self._number  # nobody takes another batch before this one is accepted
        try:
            future = self._transmit(msgpack.packb(batch.messages), batch.order)
        except NotConnected as error:
            self.end(error)
            return
        if isinstance(future, Answer):
            future.add_quick_callback(self._accepted, partial(self._was_last, number))
        else:
            future.add_done_callback(self._accepted)

    def _was_last(self, number: int) -> bool:
        """That batch was accepted: if nothing waits behind it, that is all there is to do. Again does no harm."""
        with self._lock:
            if number != self._number or not self._under_way:
                return True
            if self._waiting:
                return False
            self._changed.notify_all()
            self._under_way = False
            return True

    def _accepted(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            kind = KINDS.get(error.code) if isinstance(error, RequestFailed) else None
            self.end(kind(error.message) if kind and isinstance(error, RequestFailed) else NotConnected(str(error)))
            return
        with self._lock:
            if not self._waiting:
                self._under_way = False
                self._changed.notify_all()
                return
            batch = self._take()
        self._send(batch)
