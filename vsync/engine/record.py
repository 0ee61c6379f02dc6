"""What a node keeps in stable storage: enough never to use a ring id twice, and to know an overtaken state.

``attempts`` are rings that this node committed to and whose end it may have reached, that may be primary views in
which others act, and of which it is not known yet that they came to nothing (pitfalls K7). ``mark`` is the last
primary view it installed, ``bases`` its members and their votes – and those of the view before, if nobody may ever
have acted in it –, ``lineage`` the chain of primary views it belongs to (K8, C7): a lock state older than a mark
that is present has been overtaken. ``roster`` goes with the mark: by it the node counts votes (C8); without one it
goes by its configuration file. The few that a record names are in it once each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from vsync.roster import Roster
from vsync.types import NO_RING, Base, Bases, RingId
from vsync.wire import MAX_RING_SEQ

__all__ = ["Attempt", "Record"]

VERSION = 5


class Attempt(NamedTuple):
    """A primary view that this node may be a member of: what its mark would be."""

    ring: RingId
    lineage: int
    base: Base
    sure: bool = True  #: that chain exists; else it is the one that would begin with this attempt, or one before
    roster: Roster | None = None  #: by which it was counted


@dataclass(frozen=True, slots=True)
class Record:
    """The stable record. ``ring_seq`` is the sequence of the last ring committed to."""

    ring_seq: int
    attempts: tuple[Attempt, ...] = ()  #: oldest first
    mark: RingId = NO_RING
    lineage: int = 0
    bases: Bases = ()
    roster: Roster | None = None
    pending: bool = False  #: it was changed in the view of the mark; none has been counted by it yet

    @property
    def cluster(self) -> int:
        """The chain that this node belongs to for certain, also if it never came to be in a primary view; or 0."""
        return self.lineage or max((attempt.lineage for attempt in self.attempts if attempt.sure), default=0)

    def encode(self) -> bytes:
        """The bytes to store."""
        named = [self.roster, *(attempt.roster for attempt in self.attempts)]
        rosters = sorted({roster.packed for roster in named if roster is not None})
        places = [None if roster is None else rosters.index(roster.packed) for roster in named]
        attempts = [(*attempt[:4], place) for attempt, place in zip(self.attempts, places[1:], strict=True)]
        known = self.mark, self.lineage, self.bases, places[0], rosters, self.pending
        packed: bytes = msgpack.packb((VERSION, self.ring_seq, attempts, *known))
        return packed

    @classmethod
    def decode(cls, stored: bytes) -> Record:
        """The inverse of ``encode``. Raises ``ValueError`` for anything else."""
        try:
            version, seq, attempts, mark, lineage, bases, *more = msgpack.unpackb(stored)
            place, packed, pending = more
            rosters = {number: Roster.unpack(each) for number, each in enumerate(packed)} | {None: None}
            made = tuple(
                Attempt(RingId(*ring), int(name), _pairs(votes), bool(sure), rosters[at])
                for ring, name, votes, sure, at in attempts
            )
            known = RingId(*mark), int(lineage), _bases(bases), rosters[place], bool(pending)
            record = cls(seq, made, *known)
        except Exception as error:
            raise ValueError(f"the stored ring record is unreadable: {error!r}") from error
        if version != VERSION or type(seq) is not int or not 0 <= seq < MAX_RING_SEQ:
            raise ValueError(f"the stored ring record has an unknown form: {(version, seq)!r}")
        return record


def _bases(raw: Any) -> Bases:
    return tuple((RingId(*ring), _pairs(base)) for ring, base in raw)


def _pairs(raw: Any) -> Base:
    return tuple((int(node), int(votes)) for node, votes in raw)
