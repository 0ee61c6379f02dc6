"""What a node keeps in stable storage: enough never to use a ring id twice, and to know an overtaken state.

``attempt`` and ``members`` are the last ring this node committed to (pitfalls K7); ``mark`` is the last primary
view it installed (K8): a lock state older than a mark that is present has been overtaken.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgpack

from vsync.types import NO_RING, Member, RingId
from vsync.wire import MAX_RING_SEQ

__all__ = ["Record"]

VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """The stable record. ``ring_seq`` is the sequence of the last ring committed to."""

    ring_seq: int
    attempt: RingId = NO_RING
    members: tuple[Member, ...] = ()
    old_ring: RingId = NO_RING
    mark: RingId = NO_RING

    def encode(self) -> bytes:
        """The bytes to store."""
        row = (VERSION, self.ring_seq, self.attempt, self.members, self.old_ring, self.mark)
        packed: bytes = msgpack.packb(row)
        return packed

    @classmethod
    def decode(cls, stored: bytes) -> Record:
        """The inverse of ``encode``. Raises ``ValueError`` for anything else."""
        try:
            version, seq, attempt, members, old_ring, mark = msgpack.unpackb(stored)
            rings = RingId(*attempt), RingId(*old_ring), RingId(*mark)
            record = cls(seq, rings[0], tuple(Member(*m) for m in members), *rings[1:])
        except Exception as error:
            raise ValueError(f"the stored ring record is unreadable: {error!r}") from error
        if version != VERSION or type(seq) is not int or not 0 <= seq < MAX_RING_SEQ:
            raise ValueError(f"the stored ring record has an unknown form: {(version, seq)!r}")
        return record
