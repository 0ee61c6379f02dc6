"""The lock manager's ordered messages: one tag byte, then a msgpack array.

``(kind, life ring seq, life ring rep, serial, *body)``. The life and the gapless serial in front of every
message are what makes old messages harmless and repeated ones count once (pitfalls K6, C10). Chunks of a
state transfer, CATCH_UP, CHECK and VOTE have no life and no serial: they change nothing by themselves.

| kind | body |
|---|---|
| LOCK | name, session, h, mode, flags, value, pid, program, xid, owner |
| CONVERT, UNLOCK, CANCEL | name, session, h, mode, flags, value |
| IN_USE | name, session, h, 0, 0, nil – a lock that its client may keep idle is in use (``dlm.tries``) |
| END | session, ((name, h), ..) – the session has gone: its locks go, or become orphans (P1) |
| LOCK_ALL | session, h, ((name, mode, flags), ..), pid, program, xid, owner – all or none; handles h, h+1, .. |
| UNLOCK_ALL | session, ((name, h, flags, value), ..) |
| CANCEL_ALL | session, flags, ((name, h), ..) |
| PUBLISH | name, epoch, contents – the former owner's queues (design §5.1) |
| YIELD | name, epoch – the owner asks to become shared (K13) |
| GIVE_BACK | ((name, epoch), ..) – idle private names (A2) |
| REFILL | name, epoch – another block of fence numbers (K14) |
| GOODBYE | – (D10) |
| PURGE | node, pid – the orphans of a node are to go (P4) |
| SPACE_CREATE | lockspace, session, ticket, how, uid, gid, permissions, value limit, options |
| SPACE_RELEASE | lockspace, session, ticket, force |
| SPACE_ANSWER | lockspace, position of its release, whether the sender's private names there have locks |
| SPACE_SET | lockspace, session, ticket, changes of its options (``dlm.options``) |
| CLEARED | node, incarnation, lockspace or "*", bits, who says so [, position of the last failure it is about] – |
| | what a failure needed has come (``dlm.failures``) |
| FENCE_TRIED | node, incarnation, attempts, exit code or nil, text, whether that was all (``dlm.stonith``) |
| CHUNK | view seq, view rep, index, total, bytes, digest of all in the last one (K15, R4) |
| CATCH_UP | view seq, view rep, index, total, bytes (K4, ``dlm.catchup``) |
| LOOK | names – whose state goes into the rolling checksum (``dlm.checks``) |
| CHECK | view seq, view rep, position, mark – of the lowest full member (``dlm.checks``) |
| VOTE | view seq, view rep, position, mark or nil – what the sender has there |

Names in messages are *keys*: the lockspace and the name in one byte string (``key_of``).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

from vsync.types import RingId

__all__ = ["TAG", "Kind", "Message", "Op", "decode", "encode", "key_of", "keys_of", "prefix_of", "split_key"]

TAG = 1  #: of the ``dlm`` service
_TAG_BYTE = bytes([TAG])
_SEPARATOR = b"\x00"


class Kind(IntEnum):
    """What a message is about."""

    LOCK = 1
    CONVERT = 2
    UNLOCK = 3
    CANCEL = 4
    END = 5
    PUBLISH = 6
    YIELD = 7
    GIVE_BACK = 8
    REFILL = 9
    GOODBYE = 10
    CHUNK = 11
    PURGE = 12
    LOCK_ALL = 13
    UNLOCK_ALL = 14
    CANCEL_ALL = 15
    SPACE_CREATE = 16
    SPACE_RELEASE = 17
    SPACE_ANSWER = 18
    CHECK = 19
    VOTE = 20
    CATCH_UP = 21
    SPACE_SET = 22
    CLEARED = 23
    FENCE_TRIED = 24
    LOOK = 25
    IN_USE = 26


class Message(NamedTuple):
    """A decoded message. ``ring`` is the primary ring that admitted the sender's life."""

    kind: int
    ring: RingId
    serial: int
    body: tuple[Any, ...]


class Op(NamedTuple):
    """One operation on one name, as it stands in a waiting list of a handover."""

    kind: int
    node: int
    ring: RingId
    session: int
    h: int
    mode: int
    flags: int
    value: bytes | None
    pid: int = 0
    program: str = ""
    xid: int = 0
    owner: int = 0
    batch: tuple[bytes, ...] = ()  #: a part of a multi-lock: all its names, sorted


def encode(kind: int, ring: RingId, serial: int, body: tuple[Any, ...]) -> bytes:
    """The payload to submit."""
    packed: bytes = msgpack.packb((int(kind), ring[0], ring[1], serial, *body))
    return _TAG_BYTE + packed


def decode(payload: bytes) -> Message:
    """The inverse of ``encode``. Raises ``ValueError`` for anything else."""
    row = msgpack.unpackb(payload[1:], use_list=False)
    if not isinstance(row, tuple) or len(row) < 4:
        raise ValueError("not a message of the lock manager")
    return Message(row[0], RingId(row[1], row[2]), row[3], row[4:])


def keys_of(message: Message) -> list[bytes]:
    """The names that a message's operations are about; empty if it is no operation on locks."""
    kind, body = message.kind, message.body
    if kind <= Kind.CANCEL or kind == Kind.IN_USE:
        return [body[0]]
    if kind in (Kind.END, Kind.UNLOCK_ALL):
        return [row[0] for row in body[1]]
    if kind in (Kind.LOCK_ALL, Kind.CANCEL_ALL):
        return [row[0] for row in body[2]]
    return []


def key_of(space: str, name: bytes) -> bytes:
    """The key of a name in a lockspace."""
    return prefix_of(space) + name


def prefix_of(space: str) -> bytes:
    """What the keys of a lockspace begin with; the lockspace ``default`` costs one byte."""
    return (b"" if space == "default" else space.encode()) + _SEPARATOR


def split_key(key: bytes) -> tuple[str, bytes]:
    """The lockspace and the name of a key."""
    prefix, _, name = key.partition(_SEPARATOR)
    return prefix.decode() or "default", name
