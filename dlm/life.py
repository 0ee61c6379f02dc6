"""One node as the lock table knows it (design §4, pitfalls K2, K6)."""

from __future__ import annotations

from typing import Any

from vsync.types import RingId

__all__ = ["Life"]


class Life:
    """One node as the table knows it: (node, incarnation, admitting ring), and its last applied serial."""

    __slots__ = ("gone", "incarnation", "node", "ring", "serial")

    def __init__(self, node: int, incarnation: int, ring: RingId, serial: int = 0, gone: bool = False) -> None:
        self.node = node
        self.incarnation = incarnation
        self.ring = ring
        self.serial = serial
        self.gone = gone  #: it has said goodbye

    def encode(self) -> tuple[Any, ...]:
        """As a msgpack-able tuple."""
        return self.node, self.incarnation, tuple(self.ring), self.serial, self.gone

    @classmethod
    def decode(cls, row: tuple[Any, ...]) -> Life:
        """The inverse of ``encode``."""
        node, incarnation, ring, serial, gone = row
        return cls(node, incarnation, RingId(*ring), serial, gone)
