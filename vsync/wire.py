"""Frames: what travels between engines. Everything is validated at the gate, here; inside it is trusted.

Every frame begins with the same header::

    magic "VS" | wire version u8 | type u8 | cluster tag u64 | sender node u32 | sender incarnation u64

The cluster tag is a hash of the cluster's name, so that a stranger's frame is dropped before its body is looked
at. DATA has a fixed binary header, as it is the frame that must be fast; all others are one msgpack array.
Sequence numbers are 64 bits wide: at a million packets a second they last half a million years, so rollover
cannot occur.

Here are the header and the frames of a ring that works; those by which a ring is made are in ``wire_forming``.
``decode_*`` raise ``FrameError`` for anything that is not exactly right, and nothing else.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, NoReturn

import msgpack

from vsync.errors import FrameError
from vsync.types import Member, RingId

__all__ = [
    "WIRE_VERSION",
    "Cancel",
    "FrameType",
    "Header",
    "Packet",
    "PacketFlag",
    "Token",
    "bad",
    "claimed_sender",
    "cluster_tag",
    "decode_cancel",
    "decode_data",
    "decode_header",
    "decode_messages",
    "decode_packet",
    "decode_token",
    "encode_cancel",
    "encode_data",
    "encode_header",
    "encode_messages",
    "encode_packet",
    "encode_token",
    "read_ring",
    "unpack",
]

WIRE_VERSION = 1
MAGIC = b"VS"
MAX_NODE = 0xFFFFFFFF
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
class Cancel:
    """Somebody has messages: do not hold the token."""

    ring: RingId


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
    messages = unpack(body)
    if type(messages) is not list or any(type(m) is not bytes for m in messages):
        bad("packet body is not a list of messages")
    return messages


def encode_data(header: bytes, ring: RingId, packet: Packet) -> bytes:
    """A DATA frame."""
    return header + _DATA.pack(ring.seq, ring.rep, packet.seq, packet.origin, packet.flags) + packet.body


def decode_data(frame: bytes) -> tuple[RingId, Packet]:
    """The ring a DATA frame belongs to, and its packet."""
    try:
        ring_seq, rep, seq, origin, flags = _DATA.unpack_from(frame, HEADER_SIZE)
    except struct.error:
        bad("DATA frame is too short")
    if not seq or not origin:
        bad("DATA frame without sequence number or origin")
    return RingId(ring_seq, rep), Packet(seq, origin, flags, frame[HEADER_SIZE + _DATA.size :])


def encode_packet(packet: Packet) -> bytes:
    """A packet of the old ring as a message of the new one (recovery)."""
    return _PACKET.pack(packet.seq, packet.origin, packet.flags) + packet.body


def decode_packet(message: bytes) -> Packet:
    """The reverse of ``encode_packet``."""
    try:
        seq, origin, flags = _PACKET.unpack_from(message)
    except struct.error:
        bad("encapsulated packet is too short")
    if not seq or not origin:
        bad("encapsulated packet without sequence number or origin")
    return Packet(seq, origin, flags, message[_PACKET.size :])


# ---------------------------------------------------------------- token


def encode_token(header: bytes, token: Token) -> bytes:
    """A TOKEN frame."""
    fields = (*token.ring, token.token_seq, token.seq, token.aru, token.aru_node, token.backlog, token.fcc)
    packed: bytes = msgpack.packb((*fields, token.requests))
    return header + packed


def decode_token(frame: bytes) -> Token:
    """The token in a TOKEN frame."""
    fields = unpack(frame[HEADER_SIZE:])
    if type(fields) is not list or len(fields) != 9 or type(fields[8]) is not list:
        bad("malformed token")
    ring_seq, rep, token_seq, seq, aru, aru_node, backlog, fcc, requests = fields
    if len(requests) > MAX_REQUESTS:
        bad("token fields out of range")
    for number in (*fields[:8], *requests):
        if type(number) is not int or number < 0:
            bad("token fields out of range")
    if aru > seq:
        bad("token fields out of range")
    return Token(RingId(ring_seq, rep), token_seq, seq, aru, aru_node, backlog, fcc, requests)


def encode_cancel(header: bytes, cancel: Cancel) -> bytes:
    """A CANCEL frame."""
    packed: bytes = msgpack.packb(cancel.ring)
    return header + packed


def decode_cancel(frame: bytes) -> Cancel:
    """The CANCEL in a frame."""
    return Cancel(read_ring(unpack(frame[HEADER_SIZE:])))


# ---------------------------------------------------------------- parts, of other frames as well


def read_ring(raw: Any) -> RingId:
    """A ring id as it came."""
    match raw:
        case [int(seq), int(rep)] if 0 <= seq <= MAX_RING_SEQ and 0 <= rep <= MAX_NODE:
            return RingId(seq, rep)
        case _:
            bad("malformed ring id")


def unpack(body: bytes) -> Any:
    """The msgpack value that a body is."""
    try:
        return msgpack.unpackb(body)
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen types for bad bytes; all mean the same here
        raise FrameError(f"frame body is not msgpack: {error!r}") from None


def bad(text: str) -> NoReturn:
    """Raise the one error of the gate."""
    raise FrameError(text)
