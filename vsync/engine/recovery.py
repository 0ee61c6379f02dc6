"""Recovery: members that go together deliver the same messages before the new view (virtual synchrony, EVS-E13).

Entered when the commit token's second lap shows that all have committed. Left for Operational when every member
has everything, for Gather when the token is lost. The steps, numbered as in the code:

1. From the entries: who comes along from my old ring (the *transitional* members), and whether any of them misses
   a packet that another one has.
2. If so, each broadcasts the packets above the lowest aru as messages of the new ring, in token order; a copy that
   somebody else has sent already is dropped from the queue. What arrives goes straight into the old ring's window.
3. ``token.backlog`` is the sum of the queues, exact from a member's second visit on. Once it is zero nothing more
   will be sent: ``token.seq`` is the last packet of recovery, the *install seq*.
4. ``token.aru >= install_seq`` at two visits in a row: at the first, I have everything and no member that visited
   before me lacks anything; at the second, every member has seen the first (whoever lacked something would have
   lowered the aru, and only that member may raise it again, after this visit). So whoever installs knows that all
   have *reached* the end of recovery (pitfalls K7).
5. Install, in this order: the old ring's messages up to the first gap or the first SAFE one that none of those
   that go together knows to be stable (EVS-E24); the transitional view; the rest up to the first gap, and what
   stands behind it from transitional members and from those that somebody is *obliged* to (EVS-E15, E23); the
   regular view; the new ring's messages.

Obliged: who has reached the end of an attempt may have a companion that installed it and delivered, so it must
deliver the same of what it holds, whatever way it leaves the old ring. The obligation is in the commit token.

A recovery that breaks leaves the old ring as it was, plus the packets it gained; any number may fail in a row.

Differs from Totem '95: the end of the queues is found by the backlog, not by a flag that is set and cleared; the
old ring's state is kept apart from the new one's instead of being saved and restored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsync.engine import claims, operational
from vsync.engine.outputs import Install
from vsync.engine.timers import Timer
from vsync.errors import FrameError
from vsync.wire import (
    Packet,
    PacketFlag,
    Token,
    decode_messages,
    decode_packet,
    encode_messages,
    encode_packet,
)

if TYPE_CHECKING:
    from vsync.engine.commit import Forming
    from vsync.engine.engine import Engine

__all__ = ["absorb", "begin", "next_body", "start_token", "step"]


def begin(e: Engine, now: int) -> None:
    """Steps 1 and 2: all entries are known; queue what somebody may miss."""
    forming = e.forming
    assert forming is not None
    old = claims.before(e, forming)
    entries = forming.entries
    forming.transitional = tuple(
        m for m in forming.ring.members if m in old.member_set and entries[m.node].old_ring == old.id
    )
    came = [entries[m.node] for m in forming.transitional]
    low, high = min(c.aru for c in came), max(c.high for c in came)
    if low < high:
        forming.queue = [old.packets[seq] for seq in sorted(old.packets) if seq > low]
    e.timers.set(Timer.TOKEN, now + e.timing.token)


def start_token(e: Engine, now: int) -> None:
    """The commit token has gone round twice and I am the representative: the first regular token."""
    assert e.forming is not None
    ring = e.forming.ring
    operational.visit(e, ring, Token(ring.id, token_seq=1), now)


def next_body(e: Engine, size: int) -> bytes | None:
    """The body of the next recovery packet: as many old packets as fit in ``size`` bytes, at least one."""
    assert e.forming is not None
    queue = e.forming.queue
    messages: list[bytes] = []
    total = 0
    while queue and (not messages or total + len(queue[0].body) <= size):
        message = encode_packet(queue.pop(0))
        total += len(message)
        messages.append(message)
    return encode_messages(messages) if messages else None


def absorb(e: Engine, packet: Packet) -> None:
    """Step 2: old packets arrived through the new ring; nobody needs to send them again."""
    forming = e.forming
    assert forming is not None
    if not packet.flags & PacketFlag.ENCAPSULATED:
        return
    sender, ring = forming.ring.by_node[packet.origin], claims.before(e, forming)
    if sender not in forming.transitional:
        return  # of a ring that I was not in
    try:
        packets = [decode_packet(message) for message in decode_messages(packet.body)]
    except FrameError as error:
        e.bad_frame(sender.node, str(error))
        return
    for old in packets:
        if old.origin in ring.by_node:
            ring.add(old)
    sent = {p.seq for p in packets}
    forming.queue = [p for p in forming.queue if p.seq not in sent]


def step(e: Engine, token: Token) -> bool:
    """Steps 3 and 4, at each visit, with the token as it arrived: whether to install now."""
    forming = e.forming
    assert forming is not None
    if forming.install_seq is None:
        if forming.ring.visits < 2 or token.backlog or forming.queue:
            return False
        forming.install_seq = token.seq
    complete = min(token.aru, forming.ring.aru) >= forming.install_seq  # the token may not know yet what I lack
    forming.reached = forming.reached + 1 if complete else 0
    if forming.reached:
        old = claims.before(e, forming)
        old.obliged |= frozenset(forming.transitional)
        forming.kept = old.aru, frozenset(old.packets)
    return forming.reached == 2


def install(e: Engine, now: int) -> None:
    """Step 5; before it, if an earlier attempt has turned out to be real, that one (pitfalls K7)."""
    forming = e.forming
    assert forming is not None
    for attempt in claims.chain(forming):
        _leave_for(e, attempt)
    e.forming = None
    e.installed(now)
    operational.deliver(e, e.ring, installing=False)


def _leave_for(e: Engine, forming: Forming) -> None:
    """Out of the ring installed last, into this one."""
    assert forming.install_seq is not None
    old, new = e.ring, forming.ring
    if forming is not e.forming:
        old.keep(*forming.kept)  # others have installed this attempt with what there was then, and no more
    old.stable = max(forming.entries[m.node].stable for m in forming.transitional)  # what one knows, is so
    operational.deliver(e, old, installing=True)
    e.output(Install(claims.configuration(e, forming, True, old.members, old.id)))
    old.stable = old.aru  # what is not stable by now is delivered to those that go together (EVS-E23)
    operational.deliver(e, old, installing=True)
    welcome = frozenset(forming.transitional).union(
        *(forming.entries[m.node].obliged for m in forming.transitional)
    )
    for seq in sorted(s for s in old.packets if s > old.delivered):
        packet = old.packets[seq]
        if old.by_node[packet.origin] in welcome:
            operational.deliver_packet(e, old, packet, installing=True)
    e.output(Install(claims.configuration(e, forming, False, old.members, old.id)))
    new.consume(forming.install_seq)
    new.streak = new.quiet_visits = 0  # visits of recovery say nothing about who has something to say now
    e.ring = new
