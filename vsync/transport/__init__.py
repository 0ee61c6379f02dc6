"""What carries frames between nodes.

A transport may lose, duplicate and reorder frames; the engine repairs that. It must not block, must bound
what it keeps, and must say – through something pollable – when there is something to receive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import zmq

    from vsync.types import Peer

__all__ = ["MAX_FRAME", "Transport", "new_counters"]

MAX_FRAME = 4 << 20  #: bytes; a larger frame is a stranger's: its connection is dropped


class Transport(Protocol):
    """The I/O of one node. Used by one thread at a time; no method blocks. Times are boot-clock µs."""

    @property
    def counters(self) -> Mapping[str, int]:
        """frames_sent, frames_received, frames_dropped, bytes_sent, bytes_received, and what else it counts."""
        ...

    @property
    def pollables(self) -> Sequence[zmq.Socket[bytes] | int]:
        """zmq sockets or file descriptors that poll readable when ``receive`` has something to do."""
        ...

    @property
    def packet_bytes(self) -> int:
        """The largest payload of a packet that its network carries in one piece."""
        ...

    def send(self, to: Sequence[int], frame: bytes) -> None:
        """Send ``frame`` to these nodes, or drop it (full queue, unknown node, peer absent); never blocks."""
        ...

    def rewire(self, peers: Sequence[Peer]) -> None:
        """From now on these are the nodes, this one included: open and close links. Never blocks.

        What others say is still handed on.
        """
        ...

    def tell(self, node: int, address: str, frame: bytes) -> None:
        """Send ``frame``, once, to a node that is none of those to talk to, or drop it; never blocks."""
        ...

    def receive(self) -> list[bytes]:
        """A bounded batch of received frames, oldest first; empty when there are none now."""
        ...

    def take_gone(self) -> list[tuple[int, str]]:
        """Nodes whose process is dead, as it seems, each with the evidence for it; handed over once."""
        ...

    def next_deadline(self) -> int | None:
        """When ``fire`` should be called."""
        ...

    def fire(self, now: int) -> None:
        """Time has passed. Harmless when nothing is due."""
        ...

    def status(self) -> dict[str, Any]:
        """``name``, and what it knows of its links; msgpack-able."""
        ...

    def close(self) -> None:
        """Give everything free. Idempotent."""
        ...


def new_counters(*more: str) -> dict[str, int]:
    """The counters every transport has, and ``more``, at zero."""
    names = ("frames_sent", "frames_received", "frames_dropped", "bytes_sent", "bytes_received")
    return dict.fromkeys((*names, *more), 0)
