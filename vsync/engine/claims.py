"""Attempts at a ring that broke at the very end (pitfalls C3, K7).

Whoever has *reached* the end of a recovery (``recovery``, step 4) may have a companion that installed the ring and
acted in it, before the ring broke. It *claims* the attempt in its next commit entries. Whoever had committed to the
attempt and did not reach its end says that it *missed* it – then nobody can have installed it, since whoever
installs knows that all have reached. So with the next commit token everybody knows of each claim:

* *void*, if a member that is present missed the attempt: it is as if it had never been;
* else *real*: those who reached it install it first, and come into the new ring from there, together with whoever
  worked in it: what was sent there they get by recovery like any member.

Only attempts at a primary ring are claimed: in the others nobody could act. A claim made in an attempt that is
claimed itself stands or falls with it.

A crash may come at any point, so what is claimed is on disk before the commit token leaves (``stored``), and stays
there until it is resolved, however many attempts follow. A node that crashed does not know how far it came, so it
claims what it had stored; having lost all state it only brings the mark along. In a view that is not primary
nothing is acted upon, so there such a claim stays open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vsync.counting import counted, roster_of
from vsync.engine import contacts
from vsync.engine.outputs import Configuration
from vsync.engine.record import Attempt
from vsync.quorum import base_of, judge, known_lineage, lineage_of
from vsync.roster import Roster
from vsync.types import NO_RING, Entry, Member, RingId
from vsync.wire_forming import Claim, Commit

if TYPE_CHECKING:
    from vsync.engine.commit import Forming
    from vsync.engine.engine import Engine
    from vsync.engine.ring import Ring

__all__ = [
    "before",
    "broke",
    "chain",
    "configuration",
    "correct",
    "entries_of",
    "installed",
    "mine",
    "resolve",
    "rosters",
    "stored",
]

MISSED = 16  #: attempts that a node remembers to have missed; to forget one makes a claim real that might be void
CLAIMED = 16  #: attempts in a row, each broken at its very end, that are remembered: the bound of a commit entry


def stored(e: Engine, token: Commit) -> tuple[Attempt, ...]:
    """What to store when committing to a ring: what is open, and this attempt if it may be a primary one.

    That is known when the token comes round again, and is then corrected; mostly this guess is right, which saves
    a write. A wrong one does no harm before: nobody can go on to the end of an attempt without this node.
    """
    votes = contacts.counts_by(e).votes
    base = tuple((member.node, votes.get(member.node, 0)) for member in token.members)
    likely = e.record.lineage and e.config.quorum.policy in ("majority", "last_man_standing")
    if likely and 2 * sum(vote for _, vote in base) > sum(votes.values()):
        return _newest(e.record.attempts, Attempt(token.ring, e.record.lineage, base, roster=e.record.roster))
    return e.record.attempts


def correct(e: Engine, forming: Forming) -> None:
    """All entries are known, so whether the attempt is a primary one: before the token goes on, that is stored."""
    ring, entries = forming.ring.id, entries_of(e, forming)
    others = tuple(attempt for attempt in e.record.attempts if attempt.ring != ring)
    roster = roster_of(entries)
    contacts.met(e, roster, entries)
    if not judge(entries).primary or e.config.quorum.policy in ("two_node", "none"):
        e.record = replace(e.record, attempts=others)  # with the next write
        return
    known = known_lineage(entries.values())
    attempts = _newest(others, Attempt(ring, lineage_of(ring, entries), base_of(entries), known > 0, roster))
    if known:
        e.hello = replace(e.hello, lineage=known)
    if attempts != e.record.attempts:
        e.record = replace(e.record, attempts=attempts)
        e.persist(e.record.encode())


def _newest(attempts: tuple[Attempt, ...], more: Attempt) -> tuple[Attempt, ...]:
    return (*attempts, more)[-CLAIMED:]


def broke(e: Engine) -> None:
    """The ring that was being formed will not come to be, as far as this node can tell."""
    forming = e.forming
    if forming is None:
        return
    if not forming.reached:
        e.missed = (*e.missed, forming.ring.id)[-MISSED:]
        _forget(e, {forming.ring.id})
    elif judge(entries_of(e, forming)).primary:
        e.claims = [*e.claims, forming][-CLAIMED:]


def _forget(e: Engine, void: set[RingId]) -> None:
    """These are known to have come to nothing, and so has the cluster that this node would have got into by one."""
    e.claims = [forming for forming in e.claims if forming.ring.id not in void]
    open_ones = tuple(attempt for attempt in e.record.attempts if attempt.ring not in void)
    if open_ones != e.record.attempts:
        e.record = replace(e.record, attempts=open_ones)
        e.hello = replace(e.hello, lineage=e.record.cluster)


def mine(e: Engine) -> tuple[Claim, ...]:
    """What this node claims, the newest first: what it reached in this life, then what a former one may have."""
    made: list[Claim] = []
    known = {forming.ring.id for forming in e.claims}
    former = tuple(attempt for attempt in e.record.attempts if attempt.ring not in known)
    for forming in reversed(e.claims):
        ring, views = forming.ring, tuple(configuration(e, each, False) for each in chain(forming))
        made.append(_claim(ring.id, ring, e.upper(views, former)))
    for count in range(len(former), 0, -1):
        made.append(_claim(former[count - 1].ring, e.ring, e.upper((), former[:count])))
    return tuple(made)


def _claim(attempt: RingId, ring: Ring, upper: bytes) -> Claim:
    return Claim(attempt, ring.id, ring.aru, ring.high, ring.stable, upper, tuple(sorted(ring.obliged)))


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
                obliged=real.obliged,
                upper=real.upper,
            )
    own = forming.entries[e.me.node].real
    forming.first = next((claimed for claimed in e.claims if claimed.ring.id == own), None)
    claimed = [claim.ring for claim in forming.entries[e.me.node].claims]
    for ring in claimed:
        e.note("attempt_resolved", ring=str(ring), real=ring not in missed)
    # Who missed it may die, and others still claim it: then this node must say so.
    e.missed = (*e.missed, *(ring for ring in reversed(claimed) if ring in missed - {*e.missed}))[-MISSED:]
    _forget(e, missed)


def installed(e: Engine) -> None:
    """The new ring is installed, and before it what was real of this life's claims: they are resolved."""
    _forget(e, {forming.ring.id for forming in e.claims})


def chain(forming: Forming | None) -> Iterator[Forming]:
    """The attempts to install, oldest first: those it builds on, then itself."""
    if forming is not None:
        yield from chain(forming.first)
        yield forming


def before(e: Engine, forming: Forming) -> Ring:
    """The ring out of which this one is installed."""
    return forming.first.ring if forming.first else e.ring


def rosters(e: Engine) -> list[Roster | None]:
    """Those by which the attempts of this life that are claimed were counted."""
    return [roster_of(entries_of(e, each)) for forming in e.claims for each in chain(forming)]


def entries_of(e: Engine, forming: Forming) -> dict[int, Entry]:
    """The entries of a ring's members, with the upper layers' part read, and the votes that count."""
    entries: dict[int, Entry] = {}
    for member in forming.ring.members:
        said = forming.entries[member.node]
        entries[member.node] = Entry(member, said.old_ring, *e.decode_upper(said.upper))
    return counted(entries, forming.rosters)


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
