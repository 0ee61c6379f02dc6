"""One ring as a member sees it: who is in it, which packets it has, where its token was last.

The engine has two at most: the ring it last *installed*, whose messages still have to reach everybody, and the
one that is being *formed*. Keeping them apart is what makes any number of failed formations harmless: an attempt
that breaks is dropped as a whole, and the old ring is as it was.
"""

from __future__ import annotations

from vsync.types import Member, RingId
from vsync.wire import Packet, Token

__all__ = ["PACKETS_PER_VISIT", "Ring"]

PACKETS_PER_VISIT = 16  #: that a member sends while it has the token


class Ring:
    """Receive window and token bookkeeping of one ring.

    Invariants: ``released <= delivered <= aru <= high`` while the ring is operational; every packet in
    ``(released, aru]`` is held; a packet is dropped only after two token visits showed that all members have it.
    """

    __slots__ = (
        "answered",
        "aru",
        "assembling",
        "backlog_told",
        "by_node",
        "cancelled",
        "delivered",
        "held",
        "high",
        "id",
        "keeps",
        "last_accepted",
        "last_aru",
        "last_origin",
        "last_seq",
        "lingers_until",
        "member_set",
        "members",
        "obliged",
        "others",
        "packets",
        "predecessor",
        "quiet_visits",
        "released",
        "sent",
        "sent_at",
        "sent_last_visit",
        "sent_token",
        "spoke",
        "stable",
        "stalled_visits",
        "streak",
        "successor",
        "token_seq",
        "visits",
    )

    def __init__(self, ring_id: RingId, members: tuple[Member, ...], me: Member) -> None:
        self.id = ring_id
        self.members = members
        self.member_set = frozenset(members)
        self.by_node = {m.node: m for m in members}
        self.others = tuple(m.node for m in members if m != me)
        place = members.index(me)
        self.successor = members[(place + 1) % len(members)]
        self.predecessor = members[place - 1]  #: who alone may hand me the token

        self.packets: dict[int, Packet] = {}
        self.aru = 0  #: I have every packet up to here
        self.high = 0  #: highest sequence number I know of
        self.last_origin = members[0].node  #: of that packet; before there is one, the representative
        self.delivered = 0  #: delivered to the layer above up to here
        self.stable = 0  #: everybody has every packet up to here: SAFE ones may be delivered
        self.released = 0  #: everybody has every packet up to here; they are dropped

        self.assembling: dict[int, list[bytes]] = {}  #: pieces of large messages, by origin
        self.obliged: frozenset[Member] = frozenset()  #: whose messages have to be delivered on leaving (EVS-E23)

        self.token_seq = 0  #: of the last accepted token
        self.last_aru = 0  #: token.aru as it left at the previous visit
        self.last_seq = 0  #: token.seq as it left at the previous visit
        self.visits = 0  #: tokens accepted
        self.last_accepted = 0  #: clock of the last accepted token
        self.sent_at: int | None = None  #: clock before the token was last sent on (pitfalls K10)
        self.sent_token: bytes | None = None  #: for retransmission
        self.answered: set[int] = set()  #: packets sent again at the previous visit
        self.sent = 0  #: packets sent at this visit
        self.sent_last_visit = 0  #: packets sent at the previous visit (flow control)
        self.backlog_told = 0  #: own share of token.backlog
        self.quiet_visits = 0  #: visits in a row at which nothing was going on
        self.stalled_visits = 0  #: visits in a row at which token.aru stood still below token.seq
        self.streak = 0  #: visits with news, since the origin of packets was last another than before
        self.spoke = 0  #: clock at which this node last sent a packet
        self.keeps = members[0] == me  #: nobody has sent anything since this member did
        self.held: Token | None = None  #: the token, while this node holds it back
        self.lingers_until = 0  #: clock, while this node holds it to send more; 0 otherwise
        self.cancelled = False  #: a CANCEL has been sent since the last visit

    @property
    def representative(self) -> Member:
        """The member with the lowest node id."""
        return self.members[0]

    @property
    def keeper(self) -> Member:
        """Who keeps the token while nothing goes on: the last one that had something to send, who will be the next
        one, too, more often than not (``keeps``); at first the representative.
        """
        return self.by_node.get(self.last_origin, self.members[0])

    @property
    def alone(self) -> bool:
        """A ring of one: the token has nowhere to go."""
        return len(self.members) == 1

    def add(self, packet: Packet) -> bool:
        """Keep a packet; false if it was there already or is no longer needed."""
        seq = packet.seq
        if seq <= self.aru or seq in self.packets:
            return False
        self.packets[seq] = packet
        if seq > self.high:
            self.high = seq
            if packet.origin != self.last_origin:
                self.last_origin = packet.origin
                self.streak = 0
        while self.aru + 1 in self.packets:
            self.aru += 1
        return True

    def missing(self, up_to: int, limit: int) -> list[int]:
        """The first ``limit`` sequence numbers up to ``up_to`` that are not here."""
        gaps: list[int] = []
        for seq in range(self.aru + 1, up_to + 1):
            if seq not in self.packets:
                gaps.append(seq)
                if len(gaps) == limit:
                    break
        return gaps

    def release(self, up_to: int) -> None:
        """Drop packets that nobody will ask for again."""
        up_to = min(up_to, self.delivered)
        for seq in range(self.released + 1, up_to + 1):
            del self.packets[seq]
        self.released = max(self.released, up_to)

    def keep(self, aru: int, packets: frozenset[int]) -> None:
        """Forget the packets that came later than when these were all there was."""
        self.packets = {seq: packet for seq, packet in self.packets.items() if seq in packets}
        self.aru, self.high = aru, max(packets, default=aru)

    def consume(self, up_to: int) -> None:
        """Recovery is over: its packets up to here have done their work and all members have them."""
        self.delivered = max(self.delivered, up_to)
        self.release(up_to)
