"""The token visit: sequence, retransmit, account, pass on, deliver.

The same visit serves Recovery and Operational; only the source of packets differs. Its steps:

1. Accept: right ring, from the member before this one, ``token_seq`` higher than the last one. Nothing else
   touches timers or aru history (corosync 79c60fd0, b8878d2e).
2. Release packets that all members have: those up to the aru of two visits in a row (who lacks one lowers the aru
   at its visit in between, and only that member may raise it again).
3. Answer requests for packets; request those missing up to the sequence number of the *previous* visit – what is
   younger may still be on its way (accelerated-ring rule A4, also right when token and data race each other).
4. Recovery only: is it complete? Then install (``recovery``).
5. Hold: with nothing going on, the last one that had something to send keeps the token for a while, so that an idle
   ring costs nothing.
6. Send: pack waiting messages into packets, as many as flow control allows; large ones are cut in pieces. With an
   accelerated window the last packets of a visit leave behind the token (the token counts them already): the next
   member works while they are sent. Not so SAFE ones: who sees the token before them holds the aru down for a turn.
7. Account: aru, backlog, fcc. 8. Pass the token on, or linger (``linger``). 9. Deliver, after passing on, for the
   ring's latency; a SAFE packet, and whatever stands behind it, only when it is stable: released by step 2
   (EVS-E22, E24).

Flow control is signed arithmetic in packets: ``fcc`` is what all sent in the last rotation, kept below WINDOW;
at least one packet a visit is always allowed, so nobody starves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsync.engine import linger, recovery
from vsync.engine.outputs import Deliver
from vsync.engine.ring import PACKETS_PER_VISIT, Ring
from vsync.engine.states import Reason, State
from vsync.engine.timers import Timer
from vsync.errors import FrameError
from vsync.types import INDEX_BITS, Member, RingId
from vsync.wire import (
    MAX_REQUESTS,
    Cancel,
    FrameType,
    Packet,
    PacketFlag,
    Token,
    decode_messages,
    encode_cancel,
    encode_data,
    encode_messages,
    encode_token,
)

if TYPE_CHECKING:
    from vsync.engine.engine import Engine

__all__ = [
    "deliver", "deliver_packet", "on_cancel", "on_data", "on_token", "release_token", "send_new", "visit", "wake",
]  # fmt: skip

WINDOW = 64  #: packets in one rotation, all members together
MAX_OUTSTANDING = 2048  #: packets that not all have yet; no new ones beyond (EVS-E28)
FRAMING = 5  #: bytes that packing adds to a message, at most
QUIET_VISITS = 2  #: so many visits without anything going on, and the representative holds the token
STALL_VISITS = 1000  #: visits without progress of the aru before the member that holds it down is failed


def on_token(e: Engine, sender: Member, token: Token, now: int) -> None:
    """Step 1."""
    ring = e.active_ring()
    if ring is None or token.ring != ring.id or sender != ring.predecessor or token.token_seq <= ring.token_seq:
        e.count("rx_token_dropped")
        return
    if token.seq > ring.aru + 4 * MAX_OUTSTANDING:
        e.bad_frame(sender.node, "token with an impossible sequence number")
        return
    e.count("orf_token_rx")
    visit(e, ring, token, now)


def visit(e: Engine, ring: Ring, token: Token, now: int) -> None:
    """Steps 2 to 9 for an accepted token."""
    _accept(e, ring, token, now)
    ring.stable = max(ring.stable, min(token.aru, ring.last_aru))
    ring.release(ring.stable)
    sent = _answer_requests(e, ring, token)
    _request_missing(ring, token)
    if _stalled(e, ring, token, now):
        return
    ring.last_aru = token.aru
    installed = e.state is State.RECOVERY and recovery.step(e, token)
    if installed:
        recovery.install(e, now)
    ring.sent = sent
    if e.state is State.OPERATIONAL and not sent and _may_hold(e, ring, token):
        ring.held = token
        e.timers.set(Timer.HOLD, now + e.timing.hold)
        return
    # What waits is sent from the next visit on: the layers above may have a first message to put before it.
    send_new(e, ring, token, now, fresh=not installed)


def release_token(e: Engine, now: int) -> None:
    """Go on with a token that was held."""
    ring = e.ring
    token, ring.held = ring.held, None
    e.timers.stop(Timer.HOLD)
    if token is None:
        return
    if ring.alone:
        token.token_seq += 1
        visit(e, ring, token, now)
    else:
        send_new(e, ring, token, now)


def wake(e: Engine, now: int) -> None:
    """There is something to send: release a held token, or ask who may be keeping it to."""
    ring = e.ring
    if e.state is not State.OPERATIONAL:
        return
    if ring.lingers_until:
        linger.more(e, now)
    elif ring.held is not None and ring.alone:
        e.timers.set(Timer.HOLD, now)  # not at once: each visit may make a layer above submit again, for ever
    elif ring.held is not None:
        ring.quiet_visits = 0
        release_token(e, now)
    elif (ring.quiet_visits or linger.likely(ring)) and not ring.cancelled and ring.keeper != e.me:
        ring.cancelled = True
        e.count("token_hold_cancel_tx")
        e.send(ring.keeper.node, encode_cancel(e.header(FrameType.CANCEL), Cancel(ring.id)))


def on_cancel(e: Engine, sender: Member, cancel: Cancel, now: int) -> None:
    """Somebody else has something to send."""
    ring = e.ring
    if e.state is State.OPERATIONAL and cancel.ring == ring.id and sender in ring.member_set:
        e.count("token_hold_cancel_rx")
        ring.quiet_visits = 0
        linger.hurry(e, now)
        release_token(e, now)


def on_data(e: Engine, sender: Member, ring_id: RingId, packet: Packet) -> None:
    """A packet, first hand or retransmitted. While committed, nothing is added to the old ring (see ``commit``)."""
    ring = e.ring if e.state in (State.OPERATIONAL, State.GATHER) else e.active_ring()
    if ring is None or ring.id != ring_id or sender not in ring.member_set or packet.origin not in ring.by_node:
        e.count("rx_msg_dropped")
        return
    if packet.seq > ring.aru + 2 * MAX_OUTSTANDING or not ring.add(packet):
        e.count("rx_msg_dropped")
        return
    e.count("mcast_rx")
    if e.state is State.OPERATIONAL:
        deliver(e, ring, installing=False)
    elif e.state is State.RECOVERY:
        recovery.absorb(e, packet)


def deliver(e: Engine, ring: Ring, installing: bool) -> None:
    """Step 9: hand the gapless prefix to the layer above, up to a SAFE packet that is not stable."""
    while ring.delivered < ring.aru:
        packet = ring.packets[ring.delivered + 1]
        if packet.flags & PacketFlag.SAFE and packet.seq > ring.stable:
            return
        if e.budget <= 0 and not installing:  # a long backlog must not keep the token waiting
            e.timers.set(Timer.DELIVER, e.now)
            return
        ring.delivered += 1
        deliver_packet(e, ring, packet, installing)


def deliver_packet(e: Engine, ring: Ring, packet: Packet, installing: bool) -> None:
    """One packet. A body that makes no sense is the same nonsense everywhere, and skipped everywhere."""
    if packet.flags & PacketFlag.ENCAPSULATED:
        return
    try:
        messages = decode_messages(packet.body)
    except FrameError as error:
        e.bad_frame(packet.origin, str(error))
        return
    if packet.flags & (PacketFlag.MORE | PacketFlag.LAST):
        messages = _assemble(ring, packet, messages)
        if not messages:
            return
    e.budget -= len(messages)
    e.count("delivered", len(messages))
    e.output(Deliver(ring.by_node[packet.origin], ring.id, packet.seq, messages, installing))


def _assemble(ring: Ring, packet: Packet, messages: list[bytes]) -> list[bytes]:
    """A piece of a large message: the whole message with its last piece, nothing before.

    The pieces of one origin follow each other in its packets. A member that has the last one has all – it delivers
    without gaps, and behind a gap only whole origins – or the message is not delivered by anybody of its company.
    """
    pieces = ring.assembling.setdefault(packet.origin, [])
    pieces += messages
    if packet.flags & PacketFlag.MORE:
        return []
    del ring.assembling[packet.origin]
    return [b"".join(pieces)]


# ---------------------------------------------------------------- the steps of a visit


def _accept(e: Engine, ring: Ring, token: Token, now: int) -> None:
    if ring.visits:
        e.rotation += (now - ring.last_accepted - e.rotation) // 8
    ring.token_seq = token.token_seq
    if token.seq != ring.last_seq:
        ring.keeps = False
    ring.visits += 1
    linger.look(ring, token)
    ring.last_accepted = now
    ring.cancelled = False
    e.tokens += 1
    e.lease_basis = ring.sent_at  # the send before this return: everybody has been heard since (K10)
    if e.forming is not None:
        e.forming.commit_frame = None
    e.timers.stop(Timer.RETRANSMIT)
    e.timers.stop(Timer.HOLD)
    ring.held = None
    if not ring.alone:
        e.timers.set(Timer.TOKEN, now + e.timing.token)


def _answer_requests(e: Engine, ring: Ring, token: Token) -> int:
    """What I answered at the last visit and is asked for again I leave to another, once: mine may not get there.

    Else whoever comes first behind the one that asks would answer for ever over a link that is dead one way.
    """
    sent = 0
    unanswered = []
    in_vain, ring.answered = ring.answered if len(ring.members) > 2 else set(), set()
    for seq in token.requests:
        packet = ring.packets.get(seq)
        if packet is None or sent >= PACKETS_PER_VISIT or seq in in_vain:
            unanswered.append(seq)
        else:
            ring.answered.add(seq)
            e.count("mcast_retx")
            e.multicast(ring, encode_data(e.header(FrameType.DATA), ring.id, packet))
            sent += 1
    token.requests = unanswered
    return sent


def _request_missing(ring: Ring, token: Token) -> None:
    room = MAX_REQUESTS - len(token.requests)
    if room > 0 and ring.aru < ring.last_seq:
        listed = set(token.requests)
        token.requests += [seq for seq in ring.missing(ring.last_seq, room) if seq not in listed]


def _stalled(e: Engine, ring: Ring, token: Token, now: int) -> bool:
    """A member that never gets what all others have holds everybody's buffers: it is failed, and named."""
    if token.aru < token.seq and token.aru == ring.last_aru:
        ring.stalled_visits += 1
        e.aru_held[token.aru_node] += 1
    else:
        ring.stalled_visits = 0
    guilty = ring.by_node.get(token.aru_node)
    if ring.stalled_visits <= STALL_VISITS or guilty is None or guilty == e.me:
        return False
    e.give_up(guilty, Reason.STALLED, now)
    return True


def _may_hold(e: Engine, ring: Ring, token: Token) -> bool:
    quiet = (
        token.seq == ring.last_seq
        and token.aru == token.seq
        and not token.requests
        and not e.queue
        and not e.pieces
    )
    ring.quiet_visits = ring.quiet_visits + 1 if quiet else 0
    if ring.quiet_visits <= QUIET_VISITS:
        return False
    ring.streak = 0
    return ring.keeps and not ring.alone


def send_new(e: Engine, ring: Ring, token: Token, now: int, fresh: bool = True) -> None:
    """Steps 6 to 9. While the token lingers here, again for each burst of new messages."""
    frames, safe = _new_frames(e, ring, token, ring.sent) if fresh else ([], 0)
    ring.sent += len(frames)
    if fresh and not safe and linger.stay(e, ring, token, len(frames), now):
        for frame in frames:
            e.multicast(ring, frame)
    else:
        _depart(e, ring, token, frames, safe, now)
    if e.state is State.OPERATIONAL:
        deliver(e, ring, installing=False)


def _depart(e: Engine, ring: Ring, token: Token, frames: list[bytes], safe: int, now: int) -> None:
    ring.lingers_until = 0
    if ring.aru < token.aru or token.aru_node in (0, e.me.node):
        token.aru = ring.aru
        token.aru_node = 0 if token.aru == token.seq else e.me.node
    backlog = len(e.forming.queue) if e.forming is not None else len(e.queue) + len(e.pieces)
    token.backlog = max(0, token.backlog + backlog - ring.backlog_told)
    token.fcc = max(0, token.fcc + ring.sent - ring.sent_last_visit)
    ring.backlog_told, ring.sent_last_visit = backlog, ring.sent
    ring.last_seq = token.seq
    tail = e.config.accelerated if e.state is State.OPERATIONAL else 0
    ahead = max(safe, len(frames) - tail)
    for frame in frames[:ahead]:
        e.multicast(ring, frame)
    _pass_on(e, ring, token, now)
    for frame in frames[ahead:]:
        e.multicast(ring, frame)


def _new_frames(e: Engine, ring: Ring, token: Token, already: int) -> tuple[list[bytes], int]:
    """Sequence and keep as many packets as flow control allows; the frames to be sent, and how many of them there
    are up to the last SAFE one.
    """
    allowed = max(1, min(PACKETS_PER_VISIT, WINDOW - token.fcc) - already)
    if token.seq - token.aru > MAX_OUTSTANDING:
        allowed = 0
    frames: list[bytes] = []
    safe = 0
    while len(frames) < allowed:
        if e.forming is not None:
            body, flags = recovery.next_body(e, e.config.packet_bytes), int(PacketFlag.ENCAPSULATED)
        else:
            body, flags = _next_body(e)
        if body is None:
            break
        token.seq += 1
        packet = Packet(token.seq, e.me.node, flags, body)
        ring.add(packet)
        frames.append(encode_data(e.header(FrameType.DATA), ring.id, packet))
        if flags & PacketFlag.SAFE:
            safe = len(frames)
    if frames:
        ring.keeps = True
        e.count("mcast_tx", len(frames))
    return frames, safe


def _next_body(e: Engine) -> tuple[bytes | None, int]:
    """Pack waiting messages of one service level: many small ones, or a piece of a large one.

    ``messages_tx`` counts messages, ``mcast_tx`` packets.
    """
    if not e.pieces and e.queue and len(e.queue[0][1]) > e.config.packet_bytes:
        _cut(e)
    if e.pieces:
        piece, flags = e.pieces.popleft()
        e.count("messages_tx", int(not flags & PacketFlag.MORE))
        return encode_messages([piece]), flags
    queue = e.queue
    messages: list[bytes] = []
    total = level = 0
    while queue and len(messages) < 1 << INDEX_BITS:
        flags, message = queue[0]
        total += len(message) + FRAMING
        if messages and (total > e.config.packet_bytes or flags != level):
            break
        level = flags
        messages.append(message)
        queue.popleft()
    if not messages:
        return None, 0
    e.count("messages_tx", len(messages))
    return encode_messages(messages), level


def _cut(e: Engine) -> None:
    """Cut the first message of the queue in pieces; the whole is kept until the last piece is sequenced."""
    e.whole = flags, message = e.queue.popleft()
    size = e.config.packet_bytes
    starts = range(0, len(message), size)
    e.pieces.extend((message[i : i + size], flags | PacketFlag.MORE) for i in starts)
    piece, flags = e.pieces.pop()
    e.pieces.append((piece, flags & ~PacketFlag.MORE | PacketFlag.LAST))


def _pass_on(e: Engine, ring: Ring, token: Token, now: int) -> None:
    if ring.alone and e.state is State.OPERATIONAL:
        ring.held = token  # nobody to pass it to: it waits here for something to send
        ring.stable = ring.aru  # all members have what this one has
        e.timers.stop(Timer.TOKEN)
        if e.queue or e.pieces:
            e.timers.set(Timer.HOLD, now)
        return
    token.token_seq += 1
    ring.sent_at = now
    ring.sent_token = encode_token(e.header(FrameType.TOKEN), token)
    e.count("orf_token_tx")
    e.send(ring.successor.node, ring.sent_token)
    fast = e.state is State.RECOVERY
    e.timers.set(Timer.RETRANSMIT, now + (e.timing.join if fast else e.timing.token_retransmit))
