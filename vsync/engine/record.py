"""What a node keeps in stable storage: enough never to use a ring id twice, and to know an overtaken state.

``attempt`` and ``members`` are the ring this node committed to last, as long as it is not known to have come to
nothing or installed (pitfalls K7). ``mark`` is the last primary view it installed, ``base`` its members and their
votes, ``lineage`` the chain of primary views it belongs to (K8, C7): a lock state older than a mark that is present
has been overtaken.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgpack

from vsync.types import NO_RING, Member, RingId
from vsync.wire import MAX_RING_SEQ

__all__ = ["Record"]

VERSION = 2


@dataclass(frozen=True, slots=True)
class Record:
    """The stable record. ``ring_seq`` is the sequence of the last ring committed to."""

    ring_seq: int
    attempt: RingId = NO_RING
    members: tuple[Member, ...] = ()
    mark: RingId = NO_RING
    lineage: int = 0
    base: tuple[tuple[int, int], ...] = ()

    def encode(self) -> bytes:
        """The bytes to store."""
        row = (VERSION, self.ring_seq, self.attempt, self.members, self.mark, self.lineage, self.base)
        packed: bytes = msgpack.packb(row)
        return packed

    @classmethod
    def decode(cls, stored: bytes) -> Record:
        """The inverse of ``encode``. Raises ``ValueError`` for anything else."""
        try:
            version, seq, attempt, members, mark, lineage, base = msgpack.unpackb(stored)
            rings = RingId(*attempt), RingId(*mark)
            who = tuple(Member(*m) for m in members)
            record = cls(seq, rings[0], who, rings[1], int(lineage), tuple((n, v) for n, v in base))
        except Exception as error:
            raise ValueError(f"the stored ring record is unreadable: {error!r}") from error
        if version != VERSION or type(seq) is not int or not 0 <= seq < MAX_RING_SEQ:
            raise ValueError(f"the stored ring record has an unknown form: {(version, seq)!r}")
        return record
