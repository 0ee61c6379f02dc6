"""A node's own ordered messages, kept until its own table has applied them (pitfalls K6, K12)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from dlm.messages import Kind, Message, encode
from vsync.errors import Backpressure
from vsync.types import NO_RING, RingId

__all__ = ["Outbox"]

_ASKING = (Kind.LOCK, Kind.LOCK_ALL)


class _Entry(NamedTuple):
    serial: int
    payload: bytes
    keys: tuple[bytes, ...]
    kind: int
    body: tuple[Any, ...]


class Outbox:
    """Messages of one life, numbered from 1 without gaps.

    ``under_way`` counts, per name, own messages that are not yet applied: while there is one, the owner of
    that name has no fast path (K12). What a view drops is sent again, in order; copies that arrive twice have
    an old serial.
    """

    def __init__(self) -> None:
        self.ring = NO_RING  #: the primary ring that admitted this life
        self.under_way: dict[bytes, int] = {}
        self.sent = 0  #: messages handed to the ring, for counters
        self._entries: deque[_Entry] = deque()
        self._serial = 0
        self._submitted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, ring: RingId) -> None:
        """A new life: nothing of the former one is ever sent again."""
        self.ring = ring
        self._entries.clear()
        self.under_way.clear()
        self._serial = self._submitted = 0

    def add(self, kind: int, body: tuple[Any, ...], keys: Iterable[bytes] = ()) -> None:
        """Append a message about these names. Nothing leaves before ``flush``."""
        self._serial += 1
        entry = _Entry(self._serial, encode(kind, self.ring, self._serial, body), tuple(keys), kind, body)
        self._entries.append(entry)
        for key in entry.keys:
            self.under_way[key] = self.under_way.get(key, 0) + 1

    def flush(self, submit: Callable[[bytes], None]) -> None:
        """Submit what has not been submitted; what a full send queue refuses stays for the next call."""
        if self._submitted == self._serial:
            return
        first = self._entries[0].serial
        for index in range(self._submitted + 1 - first, len(self._entries)):
            try:
                submit(self._entries[index].payload)
            except Backpressure:
                return
            self._submitted = first + index
            self.sent += 1

    def rewind(self) -> None:
        """At a primary view: everything that is not applied is to be submitted again."""
        self._submitted = self._serial - len(self._entries)

    def as_sent(self, payload: bytes) -> Message | None:
        """The own request for locks that comes back with this payload, as it was made: its names and numbers, which
        stay as long as the locks do, are the ones that the handles have, not others that are equal.
        """
        entry = self._entries[0] if self._entries else None
        if entry is None or entry.kind not in _ASKING or entry.payload != payload:
            return None
        return Message(int(entry.kind), self.ring, entry.serial, entry.body)

    def applied(self, serial: int) -> None:
        """The own table has applied this message."""
        entry = self._entries.popleft()
        assert entry.serial == serial, "own messages are applied in order"
        self._submitted = max(self._submitted, serial)
        for key in entry.keys:
            left = self.under_way[key] - 1
            if left:
                self.under_way[key] = left
            else:
                del self.under_way[key]
