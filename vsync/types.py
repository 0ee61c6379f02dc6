"""The nouns that every layer shares: members, ring ids, views, messages.

Time everywhere in the pure layers is an ``int`` of **microseconds** on the caller's boot-time clock, handed in
as ``now``. Nothing here reads a clock.

A *position* names one message inside one ring: ``packet_seq << 16 | index_in_packet``. Positions grow along the
agreed order of their ring and are equal at every member.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from vsync.roster import Roster

__all__ = [
    "INDEX_BITS",
    "MAX_MESSAGE",
    "NO_RING",
    "POLICIES",
    "Base",
    "Bases",
    "ClusterConfig",
    "Entry",
    "Member",
    "Peer",
    "QuorumConfig",
    "RingId",
    "Timing",
    "View",
    "position",
]

MAX_MESSAGE = 1 << 20  #: bytes; the largest payload ``submit`` accepts
INDEX_BITS = 16  #: so a packet holds at most 65,536 messages


class Member(NamedTuple):
    """A processor in Totem's sense: one life of one node. A restarted node is another member."""

    node: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.node}"


class RingId(NamedTuple):
    """Totem's ring identifier. Ordered by sequence, then by representative; always compared in full."""

    seq: int
    rep: int

    def __str__(self) -> str:
        return f"{self.rep}.{self.seq:x}"


NO_RING = RingId(0, 0)


def position(packet_seq: int, index: int) -> int:
    """The place of a message in the agreed order of its ring."""
    return packet_seq << INDEX_BITS | index


@dataclass(frozen=True, slots=True)
class Peer:
    """One configured node: id 1..2**32-1, its name for people, its addresses (``host:port``), its votes."""

    node: int
    name: str
    addresses: tuple[str, ...]
    votes: int = 1


@dataclass(frozen=True, slots=True)
class Timing:
    """The engine's timers, in microseconds. The relations between them are checked on construction.

    Raises ``ValueError`` naming the relation that is broken.
    """

    token: int = 1_000_000  #: no accepted token for so long: the ring is lost
    token_retransmit: int = 238_000  #: resend the last token when nothing has come of it
    hold: int = 180_000  #: how long the representative of an idle ring keeps the token
    join: int = 50_000  #: resend JOIN in Gather
    consensus: int = 400_000  #: who has not agreed by then is failed
    merge: int = 200_000  #: probe configured nodes outside the ring
    lease: int = 2_000_000  #: locks are valid so long after the last proof that all heard us
    linger: int = 4_000  #: how long a member that alone has something to send keeps the token; 0: not at all

    def __post_init__(self) -> None:
        rules = [
            (self.hold < self.token_retransmit, "hold must be smaller than token_retransmit"),
            (self.token_retransmit * 2 < self.token, "token_retransmit must be below half of token"),
            (self.join * 2 <= self.consensus, "consensus must be at least twice join"),
            (0 <= self.linger * 4 <= self.hold, "linger must be at most a quarter of hold"),
            (self.hold * 4 <= self.lease, "hold must be at most a quarter of lease"),
            (self.token + self.consensus < self.lease, "lease must exceed token + consensus"),
            (min(self.token, self.hold, self.join, self.merge) > 0, "all timers must be positive"),
        ]
        for holds, text in rules:
            if not holds:
                raise ValueError(text)


POLICIES = ("majority", "last_man_standing", "two_node", "none")


@dataclass(frozen=True, slots=True)
class QuorumConfig:
    """When a view is primary (``docs/quorum.md``). Raises ``ValueError`` for what cannot go together."""

    policy: str = "majority"  #: majority, last_man_standing, two_node, none
    wait_for_all: bool = False  #: after a start not before all nodes have been there together once
    auto_tie_breaker: bool = False  #: exactly half of the votes are enough with the node of the lowest id
    unsafe: bool = False  #: locks under two_node or none although nothing fences the other side

    @property
    def excludes(self) -> bool:
        """Whether never two parts of a cluster may act, or the operator does not mind."""
        return self.unsafe or self.policy not in ("two_node", "none")

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"{self.policy!r} is no policy")
        if self.auto_tie_breaker and self.policy in ("two_node", "none"):
            raise ValueError(f"auto_tie_breaker has no meaning with policy {self.policy}")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What a node is told about its cluster. ``peers`` lists every configured node, this one included."""

    cluster: str
    node: int
    peers: tuple[Peer, ...]
    timing: Timing = field(default_factory=Timing)
    send_queue: int = 4096  #: messages waiting for the token before ``submit`` raises ``Backpressure``
    packet_bytes: int = 60_000  #: payload of a packet; larger messages are cut in pieces
    accelerated: int = 8  #: packets, at most, that a visit sends behind the token instead of before it
    quorum: QuorumConfig = field(default_factory=QuorumConfig)
    history: int = 10_000  #: events that a service keeps of its past, for whoever asks
    #: what each service is told, by its name: the raw values of its own table in the file. The service checks them.
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False, repr=False)
    uid: int = 0  #: the user that the node runs as: what is for administrators is for it and root

    def peer(self, node: int) -> Peer | None:
        """The configured peer with this node id, or ``None``."""
        return next((p for p in self.peers if p.node == node), None)

    def name(self, node: int) -> str:
        """The node's name for people; its id as text if it is not configured."""
        peer = self.peer(node)
        return peer.name if peer else str(node)


Base = tuple[tuple[int, int], ...]  #: nodes and votes of a primary view
Bases = tuple[tuple[RingId, Base], ...]  #: of several, the newest first


@dataclass(frozen=True, slots=True)
class Entry:
    """What one member wrote into the commit token (pitfalls K1): known to all members with the view.

    ``old_ring`` is the ring the member comes from (``NO_RING`` for a fresh start), ``announcements`` maps a
    service's tag to the bytes its ``announce()`` returned when the member filled its entry.
    """

    member: Member
    old_ring: RingId
    votes: int
    announcements: Mapping[int, bytes]
    expected_votes: int = 0  #: sum of the votes of all nodes in the member's configuration
    mark: RingId = NO_RING  #: the last primary view that the member installed, in this or a former life (K8)
    lineage: int = 0  #: the chain of primary views that the mark belongs to (C7)
    #: nodes and votes of the view that the mark names; if it may never have come to be, of those before it, too, up
    #: to the last one that came to be for certain
    bases: Bases = ()
    nodes: int = 0  #: how many nodes the member has configured
    first: int = 0  #: the lowest of them that has a vote
    terms: int = 0  #: its policy (``quorum.Terms``)
    says: int = 0  #: ``quorum.Says``
    #: by digest: the roster that the member has stored with its mark, or that its file gives; and before that those
    #: of attempts that a former life may have reached, the newest first. Each with the mark that it goes with.
    names: tuple[tuple[RingId, bytes], ...] = ()
    pending: int = 0  #: 1: it was changed in the view of that mark, and is not in force yet
    #: the roster by which all entries of this view are counted: ``votes``, ``expected_votes``, ``nodes`` and
    #: ``first`` are then what it says, not what the member does (``vsync.counting``)
    roster: Roster | None = None
    also: tuple[Roster, ...] = ()  #: others that may be what counts: the view must be primary by each of them, too
    differs: str = ""  #: in what the members' files differ, if nothing has been agreed yet


@dataclass(frozen=True, slots=True)
class View:
    """One configuration of the ring, with the quorum verdict as a field of it (EVS-E5..E11, QUO-Q2).

    Of each change every member sees two: the *transitional* view – those that go together from the old ring to
    the new one – and then the *regular* view. Both carry the verdict of the regular one in ``primary``, so that
    whoever must hold back knows it before the last old messages are delivered.

    ``id`` of a transitional view is the id of the regular view that follows. ``joined`` and ``left`` are relative
    to this node's previous regular view; a node that left and came back in between stands in both, with different
    incarnations.
    """

    id: RingId
    members: tuple[Member, ...]
    joined: tuple[Member, ...]
    left: tuple[Member, ...]
    primary: bool
    transitional: bool
    reason: str
    entries: Mapping[int, Entry]
    previous: RingId = NO_RING

    @property
    def nodes(self) -> tuple[int, ...]:
        """Node ids of the members, ascending."""
        return tuple(m.node for m in self.members)
