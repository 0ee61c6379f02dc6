"""What a node keeps in stable storage: enough never to use a ring id twice, and to know an overtaken state.

``attempts`` are rings that this node committed to and whose end it may have reached, that may be primary views in
which others act, and of which it is not known yet that they came to nothing (pitfalls K7). ``mark`` is the last
primary view it installed, ``bases`` its members and their votes – and those of the view before, if nobody may ever
have acted in it –, ``lineage`` the chain of primary views it belongs to (K8, C7): a lock state older than a mark
that is present has been overtaken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from vsync.types import NO_RING, RingId
from vsync.wire import MAX_RING_SEQ

__all__ = ["Attempt", "Record"]

VERSION = 3


class Attempt(NamedTuple):
    """A primary view that this node may be a member of: what its mark would be."""

    ring: RingId
    lineage: int
    base: tuple[tuple[int, int], ...]
    sure: bool = True  #: that chain exists; else it is the one that would begin with this attempt, or one before


@dataclass(frozen=True, slots=True)
class Record:
    """The stable record. ``ring_seq`` is the sequence of the last ring committed to."""

    ring_seq: int
    attempts: tuple[Attempt, ...] = ()  #: oldest first
    mark: RingId = NO_RING
    lineage: int = 0
    bases: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def cluster(self) -> int:
        """The chain that this node belongs to for certain, also if it never came to be in a primary view; or 0."""
        return self.lineage or max((attempt.lineage for attempt in self.attempts if attempt.sure), default=0)

    def encode(self) -> bytes:
        """The bytes to store."""
        row = (VERSION, self.ring_seq, self.attempts, self.mark, self.lineage, self.bases)
        packed: bytes = msgpack.packb(row)
        return packed

    @classmethod
    def decode(cls, stored: bytes) -> Record:
        """The inverse of ``encode``. Raises ``ValueError`` for anything else."""
        try:
            version, seq, attempts, mark, lineage, bases = msgpack.unpackb(stored)
            made = tuple(
                Attempt(RingId(*ring), int(name), _pairs(votes), bool(sure)) for ring, name, votes, sure in attempts
            )
            record = cls(seq, made, RingId(*mark), int(lineage), tuple(map(_pairs, bases)))
        except Exception as error:
            raise ValueError(f"the stored ring record is unreadable: {error!r}") from error
        if version != VERSION or type(seq) is not int or not 0 <= seq < MAX_RING_SEQ:
            raise ValueError(f"the stored ring record has an unknown form: {(version, seq)!r}")
        return record


def _pairs(raw: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(node), int(votes)) for node, votes in raw)
