"""Frames: what travels between engines. Everything is validated here, at the gate; inside it is trusted.

Every frame begins with the same header::

    magic "VS" | wire version u8 | type u8 | cluster tag u64 | sender node u32 | sender incarnation u64

The cluster tag is a hash of the cluster's name, so that a stranger's frame is dropped before its body is looked
at. DATA has a fixed binary header, as it is the frame that must be fast; all others are one msgpack array.
Sequence numbers are 64 bits wide: at a million packets a second they last half a million years, so rollover
cannot occur.

``decode_*`` raise ``FrameError`` for anything that is not exactly right, and nothing else.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import msgpack

from vsync.errors import FrameError
from vsync.types import NO_RING, Member, RingId

__all__ = [
    "WIRE_VERSION",
    "Cancel",
    "Claim",
    "Commit",
    "CommitEntry",
    "FrameType",
    "Header",
    "Hello",
    "Join",
    "News",
    "Packet",
    "PacketFlag",
    "Probe",
    "Row",
    "Token",
    "claimed_sender",
    "cluster_tag",
    "decode_cancel",
    "decode_commit",
    "decode_data",
    "decode_header",
    "decode_join",
    "decode_messages",
    "decode_news",
    "decode_packet",
    "decode_probe",
    "decode_token",
    "encode_cancel",
    "encode_commit",
    "encode_data",
    "encode_header",
    "encode_join",
    "encode_messages",
    "encode_news",
    "encode_packet",
    "encode_probe",
    "encode_token",
]

WIRE_VERSION = 1
MAGIC = b"VS"
MAX_NODE = 0xFFFFFFFF
MAX_MEMBERS = 1024
MAX_WHY = 200  #: characters
MAX_REQUESTS = 64  #: retransmission requests one token carries
MAX_RING_SEQ = (1 << 31) - 1  #: fences have 31 bits for it (pitfalls B4, C5)
MAX_U64 = (1 << 64) - 1

_HEADER = struct.Struct("!2sBBQIQ")
_DATA = struct.Struct("!QIQIB")
_PACKET = struct.Struct("!QIB")
HEADER_SIZE = _HEADER.size


class FrameType(IntEnum):
    """The kinds of frame, in Totem's words."""

    DATA = 1
    TOKEN = 2
    JOIN = 3
    COMMIT = 4
    PROBE = 5  #: merge detection
    CANCEL = 6  #: wake up a token that the representative holds
    NEWS = 7  #: the cluster's roster, for a node that has an older one


class PacketFlag(IntEnum):
    """Bits of a packet's flags."""

    ENCAPSULATED = 1  #: the messages are packets of the sender's old ring
    SAFE = 2  #: not delivered before all members are known to have it (EVS-E22..E24)
    MORE = 4  #: a piece of a large message; the next packet of this origin goes on with it
    LAST = 8  #: the last piece of a large message


class Header(NamedTuple):
    """The part common to all frames."""

    kind: FrameType
    sender: Member


@dataclass(slots=True)
class Packet:
    """One sequenced packet: the unit of ordering, retransmission and flow control. ``body`` is packed messages."""

    seq: int
    origin: int
    flags: int
    body: bytes


@dataclass(slots=True)
class Token:
    """The regular token.

    ``seq`` is the highest sequence number assigned; ``aru`` (all received up to) is what all members have, as far
    as the token knows; ``aru_node`` is who lowered it (0: nobody); ``backlog`` is the sum of the members' send
    queues and ``fcc`` the packets sent in the last rotation; ``requests`` lists packets that somebody misses.
    """

    ring: RingId
    token_seq: int = 0
    seq: int = 0
    aru: int = 0
    aru_node: int = 0
    backlog: int = 0
    fcc: int = 0
    requests: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Hello:
    """How a node introduces itself to strangers: enough to refuse it with a reason."""

    cluster: str
    address: str
    wire_min: int
    wire_max: int
    rules: tuple[tuple[str, int], ...]  #: service name, version of its rules
    lineage: int = 0  #: the chain of primary views that the node has been in (C7); 0 for none
    mark: RingId = NO_RING  #: the last primary view it was in ..
    roster: int = 0  #: .. and the version of its roster, ..
    digest: bytes = b""  #: .. and which one of that version


Row = tuple[int, frozenset[Member]]
"""Whom a node has heard of late, with a number that grows: one row of the reachability matrix."""


@dataclass(frozen=True, slots=True)
class Join:
    """JOIN: whom I see, whom I hold for failed, the seq of the last ring I committed to. ``leaving``: goodbye.

    ``reach`` passes on who hears whom, so that all can choose the same clique when not all hear all. ``why``: what
    made the sender give up its ring, for people.
    """

    hello: Hello
    ring_seq: int
    proc: frozenset[Member]
    failed: frozenset[Member]
    leaving: bool
    reach: Mapping[Member, Row] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Merge detection: a representative tells configured nodes outside its ring that it exists."""

    hello: Hello
    ring: RingId


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody has messages: do not hold the token."""

    ring: RingId


@dataclass(frozen=True, slots=True)
class News:
    """The roster that goes with a mark, packed: whom the receiver should talk to. It does not count by it."""

    lineage: int
    mark: RingId
    roster: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt whose end a member reached, and what its entry is if the attempt was real."""

    ring: RingId
    old_ring: RingId
    aru: int
    high: int
    stable: int
    upper: bytes
    obliged: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """What a member writes of itself into the commit token; ``upper`` belongs to the layers above (K1).

    ``obliged``: whose messages it has promised to deliver in attempts at leaving the old ring that it reached.
    ``stable``: up to here it knows that all members of the old ring have everything. ``claims``: attempts whose
    end it reached, the newest first; ``missed``: attempts it had committed to and whose end it did not reach (K7).
    """

    old_ring: RingId
    aru: int
    high: int
    upper: bytes
    obliged: tuple[Member, ...] = ()
    stable: int = 0
    claims: tuple[Claim, ...] = ()
    missed: tuple[RingId, ...] = ()
    real: RingId = NO_RING  #: not sent: the claim that has turned out to be real (``engine.claims``)


@dataclass(slots=True)
class Commit:
    """The commit token: goes round twice, first collecting entries, then telling all that all have committed."""

    ring: RingId
    hop: int
    members: tuple[Member, ...]
    entries: list[CommitEntry | None]
    rosters: list[bytes] = field(default_factory=list)  #: packed, each once, that the entries name (``counting``)


def cluster_tag(name: str) -> int:
    """The 64-bit tag of a cluster name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


# ---------------------------------------------------------------- header


def encode_header(kind: FrameType, tag: int, sender: Member) -> bytes:
    """The header; the same for every frame of one kind from one sender, so callers keep it."""
    return _HEADER.pack(MAGIC, WIRE_VERSION, kind, tag, sender.node, sender.incarnation)


def decode_header(frame: bytes, tag: int) -> Header:
    """Check the header against this cluster's tag."""
    if len(frame) < HEADER_SIZE:
        raise FrameError(f"frame of {len(frame)} bytes is shorter than a header: something else sends to this port")
    magic, version, kind, frame_tag, node, incarnation = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise FrameError("not a vsync frame: something else sends to this node's port")
    if version != WIRE_VERSION:
        raise FrameError(
            f"wire version {version} from node {node}, this node speaks {WIRE_VERSION}: "
            "run releases that fit together"
        )
    if frame_tag != tag:
        raise FrameError(f"frame of another cluster from node {node}: compare [cluster] name on both sides")
    if not node or not incarnation or kind not in _KINDS:
        raise FrameError(f"bad frame header from node {node}")
    return Header(_KINDS[kind], Member(node, incarnation))


def claimed_sender(frame: bytes) -> int:
    """The node id in the header of a frame that may be wrong in every other way; 0 if there is none."""
    if len(frame) < HEADER_SIZE or not frame.startswith(MAGIC):
        return 0
    node: int = _HEADER.unpack_from(frame)[4]
    return node


_KINDS = {int(kind): kind for kind in FrameType}


# ---------------------------------------------------------------- data


def encode_messages(messages: list[bytes]) -> bytes:
    """Pack the messages of one packet."""
    packed: bytes = msgpack.packb(messages)
    return packed


def decode_messages(body: bytes) -> list[bytes]:
    """The messages of one packet."""
    messages = _unpack(body)
    if type(messages) is not list or any(type(m) is not bytes for m in messages):
        _bad("packet body is not a list of messages")
    return messages


def encode_data(header: bytes, ring: RingId, packet: Packet) -> bytes:
    """A DATA frame."""
    return header + _DATA.pack(ring.seq, ring.rep, packet.seq, packet.origin, packet.flags) + packet.body


def decode_data(frame: bytes) -> tuple[RingId, Packet]:
    """The ring a DATA frame belongs to, and its packet."""
    try:
        ring_seq, rep, seq, origin, flags = _DATA.unpack_from(frame, HEADER_SIZE)
    except struct.error:
        _bad("DATA frame is too short")
    if not seq or not origin:
        _bad("DATA frame without sequence number or origin")
    return RingId(ring_seq, rep), Packet(seq, origin, flags, frame[HEADER_SIZE + _DATA.size :])


def encode_packet(packet: Packet) -> bytes:
    """A packet of the old ring as a message of the new one (recovery)."""
    return _PACKET.pack(packet.seq, packet.origin, packet.flags) + packet.body


def decode_packet(message: bytes) -> Packet:
    """The reverse of ``encode_packet``."""
    try:
        seq, origin, flags = _PACKET.unpack_from(message)
    except struct.error:
        _bad("encapsulated packet is too short")
    if not seq or not origin:
        _bad("encapsulated packet without sequence number or origin")
    return Packet(seq, origin, flags, message[_PACKET.size :])


# ---------------------------------------------------------------- token


def encode_token(header: bytes, token: Token) -> bytes:
    """A TOKEN frame."""
    fields = (*token.ring, token.token_seq, token.seq, token.aru, token.aru_node, token.backlog, token.fcc)
    packed: bytes = msgpack.packb((*fields, token.requests))
    return header + packed


def decode_token(frame: bytes) -> Token:
    """The token in a TOKEN frame."""
    fields = _unpack(frame[HEADER_SIZE:])
    if type(fields) is not list or len(fields) != 9 or type(fields[8]) is not list:
        _bad("malformed token")
    ring_seq, rep, token_seq, seq, aru, aru_node, backlog, fcc, requests = fields
    if len(requests) > MAX_REQUESTS:
        _bad("token fields out of range")
    for number in (*fields[:8], *requests):
        if type(number) is not int or number < 0:
            _bad("token fields out of range")
    if aru > seq:
        _bad("token fields out of range")
    return Token(RingId(ring_seq, rep), token_seq, seq, aru, aru_node, backlog, fcc, requests)


# ---------------------------------------------------------------- membership


def encode_join(header: bytes, join: Join) -> bytes:
    """A JOIN frame."""
    reach = [(*member, tick, _pack_set(heard)) for member, (tick, heard) in sorted(join.reach.items())]
    sets = (_pack_set(join.proc), _pack_set(join.failed))
    body = (_hello_fields(join.hello), join.ring_seq, *sets, join.leaving, reach, join.why[:MAX_WHY])
    packed: bytes = msgpack.packb(body)
    return header + packed


def decode_join(frame: bytes) -> Join:
    """The JOIN in a frame."""
    match _unpack(frame[HEADER_SIZE:]):
        case [list(hello), int(ring_seq), bytes(proc), bytes(failed), bool(leaving), list(reach), str(why)]:
            if not 0 <= ring_seq < MAX_RING_SEQ:
                _bad(f"ring sequence {ring_seq} does not fit 31 bits")
            sets = _unpack_set(proc), _unpack_set(failed)
            return Join(_hello(hello), ring_seq, *sets, leaving, _reach(reach), why[:MAX_WHY])
        case _:
            _bad("malformed JOIN")


def encode_probe(header: bytes, probe: Probe) -> bytes:
    """A PROBE frame."""
    packed: bytes = msgpack.packb((_hello_fields(probe.hello), probe.ring))
    return header + packed


def decode_probe(frame: bytes) -> Probe:
    """The PROBE in a frame."""
    match _unpack(frame[HEADER_SIZE:]):
        case [list(hello), list(ring)]:
            return Probe(_hello(hello), _ring(ring))
        case _:
            _bad("malformed PROBE")


def encode_news(header: bytes, news: News) -> bytes:
    """A NEWS frame."""
    packed: bytes = msgpack.packb((news.lineage, news.mark, news.roster))
    return header + packed


def decode_news(frame: bytes) -> News:
    """The NEWS in a frame."""
    match _unpack(frame[HEADER_SIZE:]):
        case [int(lineage), list(mark), bytes(roster)] if 0 < lineage <= MAX_U64:
            return News(lineage, _ring(mark), roster)
        case _:
            _bad("malformed NEWS")


def encode_cancel(header: bytes, cancel: Cancel) -> bytes:
    """A CANCEL frame."""
    packed: bytes = msgpack.packb(cancel.ring)
    return header + packed


def decode_cancel(frame: bytes) -> Cancel:
    """The CANCEL in a frame."""
    return Cancel(_ring(_unpack(frame[HEADER_SIZE:])))


def encode_commit(header: bytes, commit: Commit) -> bytes:
    """A COMMIT frame."""
    entries = [e and _entry_fields(e) for e in commit.entries]
    packed: bytes = msgpack.packb((commit.ring, commit.hop, commit.members, entries, commit.rosters))
    return header + packed


def decode_commit(frame: bytes) -> Commit:
    """The commit token in a frame."""
    match _unpack(frame[HEADER_SIZE:]):
        case [list(ring), int(hop), list(members), list(entries), list(rosters)] if (
            len(rosters) <= MAX_MEMBERS and all(type(packed) is bytes for packed in rosters)
        ):
            nodes = _members(members)
        case _:
            _bad("malformed commit token")
    ids = [m.node for m in nodes]
    if ids != sorted(set(ids)) or len(entries) != len(nodes) or not 1 <= hop <= 2 * len(nodes):
        _bad("commit token fields do not fit together")
    return Commit(_ring(ring), hop, nodes, [_commit_entry(e) for e in entries], rosters)


# ---------------------------------------------------------------- parts


def _entry_fields(e: CommitEntry) -> tuple[Any, ...]:
    claims = [(c.ring, c.old_ring, c.aru, c.high, c.stable, c.upper, c.obliged) for c in e.claims]
    return e.old_ring, e.aru, e.high, e.upper, e.obliged, e.stable, claims, e.missed


def _claim(raw: Any) -> Claim:
    match raw:
        case [list(ring), list(old), int(aru), int(high), int(stable), bytes(upper), list(obliged)] if (
            0 <= stable <= aru <= high
        ):
            return Claim(_ring(ring), _ring(old), aru, high, stable, upper, _members(obliged))
        case _:
            _bad("malformed claim of an attempt")


def _commit_entry(raw: Any) -> CommitEntry | None:
    match raw:
        case None:
            return None
        case [list(old), int(aru), int(high), bytes(upper), list(obliged), int(stable), list(made), list(miss)] if (
            0 <= stable <= aru <= high and len(made) + len(miss) <= MAX_MEMBERS
        ):
            attempts = tuple(_claim(claim) for claim in made), tuple(_ring(ring) for ring in miss)
            return CommitEntry(_ring(old), aru, high, upper, _members(obliged), stable, *attempts)
        case _:
            _bad("malformed commit token entry")


def _reach(raw: list[Any]) -> dict[Member, Row]:
    rows: dict[Member, Row] = {}
    for row in raw[:MAX_MEMBERS]:
        match row:
            case [int(node), int(incarnation), int(tick), bytes(heard)] if _is_member(node, incarnation, tick):
                rows[Member(node, incarnation)] = (tick, _unpack_set(heard))
            case _:
                _bad("malformed reachability row")
    return rows


def _is_member(node: int, incarnation: int, tick: int) -> bool:
    return 0 < node <= MAX_NODE and 0 < incarnation <= MAX_U64 and tick >= 0


@lru_cache(maxsize=256)
def _pack_set(members: frozenset[Member]) -> bytes:
    """A JOIN of n nodes holds n + 2 sets of up to n members, most of them equal: packed and unpacked once."""
    packed: bytes = msgpack.packb(sorted(members))
    return packed


@lru_cache(maxsize=256)
def _unpack_set(packed: bytes) -> frozenset[Member]:
    raw = _unpack(packed)
    if type(raw) is not list:
        _bad("malformed set of members")
    return frozenset(_members(raw))


def _hello_fields(hello: Hello) -> tuple[Any, ...]:
    known = hello.lineage, hello.mark, hello.roster, hello.digest
    return (hello.cluster, hello.address, hello.wire_min, hello.wire_max, hello.rules, *known)


def _hello(raw: list[Any]) -> Hello:
    match raw:
        case [
            str(cluster),
            str(address),
            int(low),
            int(high),
            list(rules),
            int(lineage),
            list(mark),
            int(roster),
            bytes(digest),
        ] if 0 <= lineage <= MAX_U64 and roster >= 0:
            pairs = tuple((r[0], r[1]) for r in rules if isinstance(r, list) and len(r) == 2)
            if len(pairs) == len(rules) and all(type(n) is str and type(v) is int for n, v in pairs):
                return Hello(cluster, address, low, high, pairs, lineage, _ring(mark), roster, digest)
    _bad("malformed introduction")


def _members(raw: list[Any]) -> tuple[Member, ...]:
    if not len(raw) <= MAX_MEMBERS:
        _bad("too many members")
    for pair in raw:
        match pair:
            case [int(node), int(incarnation)] if 0 < node <= MAX_NODE and 0 < incarnation <= MAX_U64:
                pass
            case _:
                _bad("malformed member")
    return tuple(Member(*pair) for pair in raw)


def _ring(raw: Any) -> RingId:
    match raw:
        case [int(seq), int(rep)] if 0 <= seq <= MAX_RING_SEQ and 0 <= rep <= MAX_NODE:
            return RingId(seq, rep)
        case _:
            _bad("malformed ring id")


def _unpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(body)
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen types for bad bytes; all mean the same here
        raise FrameError(f"frame body is not msgpack: {error!r}") from None


def _bad(text: str) -> NoReturn:
    raise FrameError(text)
