"""Attempts at a ring that broke at the very end (pitfalls C3, K7).

Whoever has *reached* the end of a recovery (``recovery``, step 4) may have a companion that installed the ring and
acted in it, before the ring broke. It *claims* the attempt in its next commit entries. Whoever had committed to the
attempt and did not reach its end says that it *missed* it – then nobody can have installed it, since whoever
installs knows that all have reached. So with the next commit token everybody knows of each claim:

* *void*, if a member that is present missed the attempt: it is as if it had never been;
* else *real*: those who reached it install it first, and come into the new ring from there, together with whoever
  worked in it: what was sent there they get by recovery like any member.

Only attempts at a primary ring are claimed: in the others nobody could act. A claim made in an attempt that is
claimed itself stands or falls with it. A node that crashed does not know how far it came, so it claims what it
had stored; having lost all state it only brings the mark along.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vsync.engine.outputs import Configuration
from vsync.quorum import judge
from vsync.types import NO_RING, ClusterConfig, Entry, Member, RingId
from vsync.wire import Claim

if TYPE_CHECKING:
    from vsync.engine.commit import Forming
    from vsync.engine.engine import Engine
    from vsync.engine.record import Record
    from vsync.engine.ring import Ring

__all__ = ["before", "broke", "chain", "configuration", "entries_of", "left_over", "mine", "resolve"]

MISSED = 16  #: attempts that a node remembers to have missed


def broke(e: Engine) -> None:
    """The ring that was being formed will not come to be, as far as this node can tell."""
    forming = e.forming
    if forming is None:
        return
    if not forming.reached:
        e.missed = (*e.missed, forming.ring.id)[-MISSED:]
    elif judge(entries_of(e, forming)).primary:
        e.claims.append(forming)


def left_over(record: Record, config: ClusterConfig) -> RingId:
    """The attempt that a former life stored and did not resolve, if it can have been a primary one."""
    votes = {peer.node: peer.votes for peer in config.peers}
    present = sum(votes.get(member.node, 0) for member in record.members)
    voting = config.quorum.policy in ("majority", "last_man_standing")
    return record.attempt if voting and 2 * present >= sum(votes.values()) else NO_RING


def mine(e: Engine) -> tuple[Claim, ...]:
    """What this node claims, the newest first."""
    made: list[Claim] = []
    for forming in reversed(e.claims):
        ring, views = forming.ring, tuple(configuration(e, each, False) for each in chain(forming))
        made.append(Claim(ring.id, ring.id, ring.aru, ring.high, ring.stable, e.upper(views)))
    if e.stored_claim != NO_RING:
        old = e.ring
        made.append(Claim(e.stored_claim, old.id, old.aru, old.high, old.stable, e.upper((), e.stored_claim)))
    return tuple(made)


def resolve(e: Engine, forming: Forming) -> None:
    """All entries are known: replace those of members whose claim is real by what they say for that case."""
    missed = {ring for entry in forming.entries.values() for ring in entry.missed}
    for node, entry in sorted(forming.entries.items()):
        real = next((claim for claim in entry.claims if claim.ring not in missed), None)
        if real is not None:
            forming.entries[node] = replace(
                entry,
                real=real.ring,
                old_ring=real.old_ring,
                aru=real.aru,
                high=real.high,
                stable=real.stable,
                obliged=(),
                upper=real.upper,
            )
    own = forming.entries[e.me.node].real
    forming.first = next((claimed for claimed in e.claims if claimed.ring.id == own), None)
    for claim in forming.entries[e.me.node].claims:
        e.note("attempt_resolved", ring=str(claim.ring), real=claim.ring == own)


def chain(forming: Forming | None) -> Iterator[Forming]:
    """The attempts to install, oldest first: those it builds on, then itself."""
    if forming is not None:
        yield from chain(forming.first)
        yield forming


def before(e: Engine, forming: Forming) -> Ring:
    """The ring out of which this one is installed."""
    return forming.first.ring if forming.first else e.ring


def entries_of(e: Engine, forming: Forming) -> dict[int, Entry]:
    """The entries of a ring's members, with the upper layers' part read."""
    entries: dict[int, Entry] = {}
    for member in forming.ring.members:
        said = forming.entries[member.node]
        entries[member.node] = Entry(member, said.old_ring, *e.decode_upper(said.upper))
    return entries


def configuration(
    e: Engine, forming: Forming, transitional: bool, before: tuple[Member, ...] = (), previous: RingId = NO_RING
) -> Configuration:
    """The view that installing this ring is, for who comes from ring ``previous`` with members ``before``."""
    new, together = forming.ring, frozenset(forming.transitional)
    return Configuration(
        id=new.id,
        members=forming.transitional if transitional else new.members,
        joined=() if transitional else tuple(m for m in new.members if m not in together),
        left=tuple(m for m in before if m not in together),
        transitional=transitional,
        reason=e.change_reason(),
        entries=entries_of(e, forming),
        previous=RingId(*previous),
    )
