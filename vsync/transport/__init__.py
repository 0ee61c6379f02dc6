"""What carries frames between nodes.

A transport may lose, duplicate and reorder frames; the engine repairs that. It must not block, must bound
what it keeps, and must say – through something pollable – when there is something to receive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import zmq

__all__ = ["MAX_FRAME", "Transport"]

MAX_FRAME = 4 << 20  #: bytes; a larger frame is a stranger's: its connection is dropped


class Transport(Protocol):
    """The I/O of one node. Used by one thread at a time; no method blocks."""

    @property
    def counters(self) -> Mapping[str, int]:
        """frames_sent, frames_received, frames_dropped, bytes_sent, bytes_received."""
        ...

    @property
    def pollable(self) -> zmq.Socket[bytes] | int:
        """A zmq socket or a file descriptor that polls readable when ``receive`` has something."""
        ...

    def send(self, to: Sequence[int], frame: bytes) -> None:
        """Send ``frame`` to these nodes, or drop it (full queue, unknown node, peer absent); never blocks."""
        ...

    def receive(self) -> list[bytes]:
        """A bounded batch of received frames, oldest first; empty when there are none now."""
        ...

    def close(self) -> None:
        """Give everything free. Idempotent."""
        ...
