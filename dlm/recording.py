"""A recorded lock table: what a node gives out while it is recorded, and the file that is made of it.

::

    DlmService ──▶ Taps ──▶ pushes ──▶ dlm record FILE ──▶ read() ──▶ dlm.replay
                    │
                    a snapshot of the table at the position where it begins

The table is a function of the ordered stream, so the snapshot and all that was applied since are the whole truth.
In the file, version 1, are ``MAGIC``, the version as u16, and records: length and CRC-32 of each as u32, then
msgpack, a list whose first element is one of the words below. A file may end anywhere: a recorder may be killed.

| record | |
|---|---|
| head | map: node, cluster, position, every (positions between marks), size of the snapshot, now |
| table | a piece of the snapshot |
| message | now, node, incarnation, kind, life's ring, serial, body |
| view | now, view, members, who goes on, (node, life's ring) of the entries, messages before it and behind it |
| mark | position, value (``dlm.checks``) |
| end | position, digest of the table, reason |

Contents of names that are private to a node are not in it, not even those of the recorded node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgpack

from dlm import checks
from dlm.messages import TAG, Message
from dlm.recovery import Announcement, Held, announcements
from vsync.errors import RecordingError
from vsync.types import NO_RING, Entry, Member, RingId, View

if TYPE_CHECKING:
    from dlm.service import DlmService
    from dlm.table import Table

__all__ = ["MAGIC", "Taps", "frame", "held_from", "message_from", "read", "view_from"]

MAGIC = b"dlmrec"
VERSION = 2
PIECE = 256 * 1024  #: bytes of snapshot in one answer
MOST = 4  #: recorders at a time
LONGEST = 1 << 26  #: bytes of one record

Row = Sequence[Any]


class Taps:
    """The recorders of one node: sessions that are told of all that is applied to the table."""

    def __init__(self, service: DlmService) -> None:
        self._service = service
        self._open: dict[int, bytes] = {}  #: by session: the snapshot

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, session: int) -> dict[str, Any]:
        """Record for this session from now on. Returns the head; the snapshot is read with ``piece``."""
        service, table = self._service, self._service.table
        snapshot = self._open[session] = table.encode()
        return {
            "node": service.host.me.node,
            "cluster": service.host.config.cluster,
            "position": table.applied,
            "every": checks.EVERY,
            "size": len(snapshot),
            "now": table.now,
        }

    def full(self, session: int) -> bool:
        """Whether there can be no more."""
        return len(self._open) >= MOST or session in self._open

    def piece(self, session: int, offset: int) -> bytes | None:
        """Some of the snapshot; ``None`` if the session records nothing."""
        snapshot = self._open.get(session)
        return None if snapshot is None else snapshot[offset : offset + PIECE]

    def end(self, session: int) -> None:
        """The session has enough, or has gone."""
        self._open.pop(session, None)

    # -- what the service tells

    def message(self, origin: Member, message: Message) -> None:
        """It is about to be applied."""
        self._push("message", self._service.home.now, *_message(origin, message))

    def view(self, view: View, going_on: Iterable[int], prefix: Iterable[Held], rest: Iterable[Held]) -> None:
        """A primary view that the table is about to be carried into."""
        if not self._open:
            return
        lives = [(node, tuple(said.life), said.split) for node, (_, said) in announcements(view).items()]
        members = [tuple(member) for member in view.members]
        before, behind = ([_message(*held) for held in each] for each in (prefix, rest))
        self._push("view", self._service.home.now, tuple(view.id), members, sorted(going_on), lives, before, behind)

    def mark(self, table: Table) -> None:
        """A mark has been taken."""
        if table.applied in table.marks:
            self._push("mark", table.applied, table.marks[table.applied])

    def over(self, reason: str) -> None:
        """This table goes no further."""
        if not self._open:
            return
        table = self._service.table
        self._push("end", table.applied, table.digest(), reason)
        self._open.clear()

    def _push(self, *row: Any) -> None:
        for session in self._open:
            self._service.host.push(session, "dlm", "record", row)


def _message(origin: Member, message: Message) -> tuple[Any, ...]:
    return origin.node, origin.incarnation, message.kind, tuple(message.ring), message.serial, message.body


def message_from(row: Row) -> Held:
    """Who sent which message."""
    node, incarnation, kind, ring, serial, body = row
    return Member(node, incarnation), Message(kind, RingId(*ring), serial, body)


def held_from(rows: Iterable[Row]) -> list[Held]:
    """Several."""
    return [message_from(row) for row in rows]


def view_from(ring: Row, members: Iterable[Row], lives: Iterable[Row]) -> View:
    """A view, as far as the lock table looks at it."""
    present = tuple(Member(*member) for member in members)
    incarnation = {member.node: member for member in present}
    entries = {
        node: Entry(incarnation[node], NO_RING, 1, {TAG: Announcement(life=RingId(*life), split=split).encode()})
        for node, life, split in lives
    }
    return View(RingId(*ring), present, (), (), True, False, "recorded", entries, NO_RING)


# -- the file ------------------------------------------------------------------------------------------------


def header() -> bytes:
    """What every file begins with."""
    return MAGIC + VERSION.to_bytes(2, "big")


def frame(row: Row) -> bytes:
    """One record."""
    packed: bytes = msgpack.packb(row)
    return len(packed).to_bytes(4, "big") + crc32(packed).to_bytes(4, "big") + packed


def read(data: bytes, where: str) -> tuple[list[Any], str]:
    """The records of a file, and what is wrong with its tail (nothing: an empty text).

    Raises ``RecordingError`` for what is no recording, and for one with a damaged record before the last.
    """
    start = len(MAGIC) + 2
    if not data.startswith(MAGIC):
        raise RecordingError(f"{where}: is not a recorded lock table")
    version = int.from_bytes(data[len(MAGIC) : start], "big")
    if version != VERSION:
        raise RecordingError(f"{where}: is of format {version}, this release reads {VERSION}")
    rows: list[Any] = []
    for begin, packed, code in _frames(data, start):
        if packed is None or crc32(packed) != code:
            if packed is not None and begin + 8 + len(packed) < len(data):
                raise RecordingError(f"{where}: is damaged at byte {begin}")
            return rows, f"the file ends within a record, at byte {begin} of {len(data)}: that one is left out"
        rows.append(msgpack.unpackb(packed, use_list=False))
    return rows, ""


def _frames(data: bytes, start: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Where each record begins, its bytes (``None``: not all there), its checksum."""
    while start < len(data):
        size, code = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (0, 4))
        packed = data[start + 8 : start + 8 + size]
        whole = start + 8 <= len(data) and len(packed) == size <= LONGEST
        yield start, packed if whole else None, code
        if not whole:
            return
        start += 8 + size
