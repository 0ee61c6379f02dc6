"""A network inside one process, for embedded examples and tests: no sockets, no loss unless asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import Any

from vsync.transport import MAX_FRAME, new_counters
from vsync.types import Peer

__all__ = ["MemoryHub", "MemoryTransport"]

_QUEUE = 4096  # frames per node
_BATCH = 32


class MemoryHub:
    """Connects the transports made by ``transport(node)``. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._nodes: dict[int, MemoryTransport] = {}
        self._cuts: set[tuple[int, int]] = set()

    def transport(self, node: int) -> MemoryTransport:
        """A transport for ``node``; it replaces a former one of that node, as a restart would."""
        transport = MemoryTransport(self, node)
        with self._lock:
            self._nodes[node] = transport
        return transport

    def cut(self, sender: int, receiver: int, *, both: bool = True) -> None:
        """From now on drop frames from ``sender`` to ``receiver`` (and back, if ``both``)."""
        with self._lock:
            self._cuts |= {(sender, receiver), (receiver, sender)} if both else {(sender, receiver)}

    def heal(self, *nodes: int) -> None:
        """Undo every ``cut``, or those between these ``nodes``."""
        with self._lock:
            self._cuts = {cut for cut in self._cuts if nodes and not set(cut) <= set(nodes)}

    def carry(self, sender: int, receiver: int, frame: bytes) -> bool:
        """Put ``frame`` into the receiver's queue; false if it was dropped. For ``MemoryTransport``."""
        with self._lock:
            transport = None if (sender, receiver) in self._cuts else self._nodes.get(receiver)
            return transport is not None and transport.offer(frame)

    def remove(self, transport: MemoryTransport) -> None:
        """Forget a closed transport. For ``MemoryTransport``."""
        with self._lock:
            if self._nodes.get(transport.node) is transport:
                del self._nodes[transport.node]


class MemoryTransport:
    """One node's end of a ``MemoryHub``."""

    def __init__(self, hub: MemoryHub, node: int) -> None:
        self.node = node
        self._hub = hub
        self._lock = Lock()
        self._queue: deque[bytes] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.counters = new_counters()

    @property
    def pollables(self) -> tuple[int]:
        """An eventfd, readable while frames wait."""
        return (self._wake,)

    @property
    def packet_bytes(self) -> int:
        """Nothing limits a frame here."""
        return MAX_FRAME

    def send(self, to: Sequence[int], frame: bytes) -> None:
        """Hand ``frame`` to these nodes; dropped where the queue is full or nobody is there."""
        for node in to:
            if self._hub.carry(self.node, node, frame):
                self.counters["frames_sent"] += 1
                self.counters["bytes_sent"] += len(frame)
            else:
                self.counters["frames_dropped"] += 1

    def rewire(self, peers: Sequence[Peer]) -> None:
        """The hub knows everybody."""

    def tell(self, node: int, address: str, frame: bytes) -> None:
        """As ``send``."""
        self.send((node,), frame)

    def offer(self, frame: bytes) -> bool:
        """Called by the hub, from the sender's thread."""
        with self._lock:
            if self._wake < 0 or len(self._queue) >= _QUEUE:
                return False
            if not self._queue:
                os.eventfd_write(self._wake, 1)
            self._queue.append(frame)
            return True

    def receive(self) -> list[bytes]:
        """Up to 32 frames, oldest first."""
        with self._lock:
            frames = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            if frames and not self._queue:
                os.eventfd_read(self._wake)
        self.counters["frames_received"] += len(frames)
        self.counters["bytes_received"] += sum(map(len, frames))
        return frames

    def take_gone(self) -> list[tuple[int, str]]:
        """Nobody knows here."""
        return []

    def next_deadline(self) -> int | None:
        """Nothing ever falls due."""
        return None

    def fire(self, now: int) -> None:
        """Nothing falls due."""

    def status(self) -> dict[str, Any]:
        """Its name."""
        return {"name": "memory", "links": []}

    def close(self) -> None:
        """Leave the hub. Idempotent."""
        self._hub.remove(self)
        with self._lock:
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
                self._queue.clear()
