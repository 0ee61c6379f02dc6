"""Commit: the commit token goes round twice, so that every member knows that every member agreed.

First lap: each member accepts (its own candidates are exactly the token's members), stores the new ring id, and
adds its entry: the ring it comes from, what it has of it, and the upper layers' bytes (pitfalls K1). Second lap:
each sees all entries and goes to Recovery. When the token comes back to the representative once more, it starts
the regular token of the new ring.

The ring id is in stable storage *before* the token leaves, and with it that this attempt may become a primary
view (K7): no restart can use the id again. While a node is committed its old ring's window is frozen – it takes
packets of the old ring only through the new one – because the entry says what it holds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vsync.engine import claims, contacts, recovery
from vsync.engine.ring import Ring
from vsync.engine.states import State
from vsync.engine.timers import Timer
from vsync.roster import Roster
from vsync.types import Member, RingId
from vsync.wire import FrameType, Packet
from vsync.wire_forming import Commit, CommitEntry, encode_commit

if TYPE_CHECKING:
    from vsync.engine.engine import Engine

__all__ = ["Forming", "on_commit", "on_retransmit", "start"]


class Forming:
    """A ring in the making. It becomes the installed ring as a whole, or is dropped as a whole."""

    __slots__ = (
        "commit_frame", "entries", "first", "hop", "install_seq", "kept", "queue", "reached", "ring",
        "rosters", "transitional",
    )  # fmt: skip

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.hop = 0  #: of the last commit token handled; a smaller one is a duplicate
        self.commit_frame: bytes | None = None  #: for retransmission
        self.entries: dict[int, CommitEntry] = {}  #: by node, complete from Recovery on
        self.rosters: dict[bytes, Roster] = {}  #: by digest: those that the entries name
        # Recovery:
        self.transitional: tuple[Member, ...] = ()  #: who comes along from my old ring
        self.queue: list[Packet] = []  #: old packets that I still have to broadcast
        self.install_seq: int | None = None  #: the last packet of recovery, once known
        self.reached = 0  #: visits in a row with token.aru >= install_seq
        self.kept: tuple[int, frozenset[int]] = (0, frozenset())  #: aru and packets of the old ring, when reached
        self.first: Forming | None = None  #: an earlier attempt that is to be installed before (``claims``)


def start(e: Engine, members: tuple[Member, ...], now: int) -> None:
    """Consensus is reached and I am the representative: form a ring and send the commit token round."""
    ring = RingId(max(e.ring_seq, e.highest_ring_seq) + 1, e.me.node)
    _accept(e, Commit(ring, 0, members, [None] * len(members)), now)


def on_commit(e: Engine, sender: Member, token: Commit, now: int) -> None:
    """The commit token: join in, go on to Recovery, or start the new ring's regular token."""
    if e.me not in token.members:
        return
    e.count("memb_commit_token_rx")
    if e.state is State.GATHER:
        mine = tuple(sorted(e.gathering.candidates()))
        if token.members == mine and token.ring.seq > e.ring_seq and _first_lap_is_mine(e, token):
            _accept(e, token, now)
        return
    forming = e.forming
    if forming is None or token.ring != forming.ring.id or token.hop <= forming.hop:
        return
    forming.hop = token.hop
    count = len(token.members)
    if e.state is State.COMMIT and None not in token.entries:
        forming.entries = {m.node: x for m, x in zip(token.members, token.entries, strict=True) if x}
        forming.rosters = _rosters(token)
        claims.resolve(e, forming)
        claims.correct(e, forming)
        e.enter(State.RECOVERY)
        recovery.begin(e, now)
        token.hop += 1
        _send_on(e, token, now)
    elif e.state is State.RECOVERY and token.hop == 2 * count and e.me == token.members[0]:
        forming.commit_frame = None
        recovery.start_token(e, now)


def on_retransmit(e: Engine, now: int) -> None:
    """The commit token may have been lost."""
    assert e.forming is not None
    if e.forming.commit_frame is not None:
        e.send(e.forming.ring.successor.node, e.forming.commit_frame)
        e.timers.set(Timer.RETRANSMIT, now + e.timing.join)


def _first_lap_is_mine(e: Engine, token: Commit) -> bool:
    place = token.members.index(e.me)
    return token.hop == place and all(token.entries[:place]) and not any(token.entries[place:])


def _accept(e: Engine, token: Commit, now: int) -> None:
    e.forming = Forming(Ring(token.ring, token.members, e.me))
    e.ring_seq = token.ring.seq
    e.enter(State.COMMIT)
    old = e.ring
    claimed = claims.mine(e)
    e.record = replace(e.record, ring_seq=e.ring_seq, attempts=claims.stored(e, token))
    e.persist(e.record.encode())
    named = contacts.named_by(e, claims.rosters(e))
    token.rosters += [packed for packed in named if packed not in token.rosters]
    place = token.members.index(e.me)
    token.entries[place] = CommitEntry(
        old.id, old.aru, old.high, e.upper(()), tuple(sorted(old.obliged)), old.stable, claimed, e.missed
    )
    token.hop += 1
    e.timers.set(Timer.TOKEN, now + e.timing.consensus)
    _send_on(e, token, now)


def _rosters(token: Commit) -> dict[bytes, Roster]:
    found = {}
    for packed in token.rosters:
        try:
            roster = Roster.unpack(packed)
        except ValueError:
            continue  # whose entry names it has no vote
        found[roster.digest] = roster
    return found


def _send_on(e: Engine, token: Commit, now: int) -> None:
    assert e.forming is not None
    e.forming.hop = max(e.forming.hop, token.hop - 1)
    e.forming.commit_frame = encode_commit(e.header(FrameType.COMMIT), token)
    e.count("memb_commit_token_tx")
    e.send(e.forming.ring.successor.node, e.forming.commit_frame)
    e.timers.set(Timer.RETRANSMIT, now + e.timing.join)
