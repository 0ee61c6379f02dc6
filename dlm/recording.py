"""A recorded lock table: what a node gives out while it is recorded, and the file that is made of it.

::

    DlmService ──▶ Taps ──▶ pushes ──▶ dlm record FILE ──▶ read() ──▶ dlm.replay
                    │
                    a snapshot of the table at the position where it begins

The table is a function of the ordered stream, so the snapshot and all that was applied since are the whole truth.
The snapshot is written down a few names at a time while the table goes on (``dlm.snapshot.Copy``).
In the file, version 3, are ``MAGIC``, the version as u16, and records: length and CRC-32 of each as u32, then
msgpack, a list whose first element is one of the words below. A file may end anywhere: a recorder may be killed.

| record | |
|---|---|
| head | map: node, cluster, position, every (positions between marks), now |
| table | a piece of the snapshot |
| message | now, node, incarnation, kind, life's ring, serial, body |
| view | now, view, members, who goes on, (node, life's ring) of the entries, messages before it and behind it |
| mark | position, value (``dlm.checks``) |
| end | position, digest of the table, reason |

Contents of names that are private to a node are not in it, not even those of the recorded node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgpack

from dlm import checks
from dlm.messages import TAG, Message
from dlm.recovery import Announcement, Held, announcements
from dlm.snapshot import Copy
from dlm.work import ITEM, Chores
from vsync.errors import RecordingError
from vsync.types import NO_RING, Entry, Member, RingId, View

if TYPE_CHECKING:
    from dlm.service import DlmService
    from dlm.table import Table

__all__ = ["MAGIC", "Taps", "frame", "held_from", "message_from", "read", "view_from"]

MAGIC = b"dlmrec"
VERSION = 3
PIECE = 256 * 1024  #: bytes of snapshot in one answer
MOST = 4  #: recorders at a time
LONGEST = 1 << 26  #: bytes of one record

Row = Sequence[Any]


class Tape:
    """The table at the position where a recording begins, on its way to its session, name by name."""

    def __init__(self, table: Table) -> None:
        self.wanted = True
        self.asked = 0  #: number of the request that waits for the next piece
        self._copy = Copy(table)
        self._objects = self._copy.pieces()
        self._ready = [next(self._objects)]  # the head is of this position
        self._size = 0
        self._whole = False

    def run(self) -> Iterator[int]:
        """A job: go on; ends early when nobody wants it any more."""
        for each in self._objects:
            self._ready.append(each)
            self._size += len(each)
            yield ITEM
            if not self.wanted:
                return
        self._whole = True

    def piece(self) -> bytes | None:
        """Some of it, nothing at its end; ``None`` if it is not there yet."""
        if self._size < PIECE and not self._whole:
            return None
        piece, self._ready, self._size = b"".join(self._ready), [], 0
        return piece

    def drop(self) -> None:
        """Nobody wants it any more."""
        self.wanted = False
        self._copy.drop()


class Taps:
    """The recorders of one node: sessions that are told of all that is applied to the table.

    ``chores`` is what has to be done for them: copies of the table, a few names at a time.
    """

    def __init__(self, service: DlmService) -> None:
        self.chores = Chores()
        self._service = service
        self._open: dict[int, Tape] = {}  #: by session

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, session: int) -> dict[str, Any]:
        """Record for this session from now on. Returns the head; the table is read with ``piece``."""
        service, table = self._service, self._service.table
        tape = self._open[session] = Tape(table)
        self.chores.add(self._copied(session, tape))
        return {
            "node": service.host.me.node,
            "cluster": service.host.config.cluster,
            "position": table.applied,
            "every": checks.EVERY,
            "now": table.now,
        }

    def full(self, session: int) -> bool:
        """Whether there can be no more."""
        return len(self._open) >= MOST or session in self._open

    def piece(self, session: int, rid: int) -> bool:
        """Answer a request with some of the table, when it is there, and with nothing at its end. ``False`` if the
        session records nothing.
        """
        tape = self._open.get(session)
        if tape is None:
            return False
        tape.asked = rid
        self._answer(session, tape)
        return True

    def _copied(self, session: int, tape: Tape) -> Iterator[int]:
        for cost in tape.run():
            self._answer(session, tape)
            yield cost
        self._answer(session, tape)

    def _answer(self, session: int, tape: Tape) -> None:
        if tape.asked and tape.wanted and (piece := tape.piece()) is not None:
            self._service.host.reply(session, tape.asked, piece)
            tape.asked = 0

    def close(self, session: int) -> None:
        """The session has gone, or has enough."""
        tape = self._open.pop(session, None)
        if tape is None:
            return
        tape.drop()
        if tape.asked:
            self._service.host.refuse(session, tape.asked, "unknown", "this session does not record any more")

    def end(self, session: int, rid: int) -> None:
        """The session has enough; it is answered with the position and the digest of the table there."""
        self.close(session)
        position = self._service.table.applied

        def answer(digest: str) -> None:
            self._service.host.reply(session, rid, {"position": position, "digest": digest})

        self.chores.add(self._digest(session, answer))

    def _digest(self, session: int, tell: Callable[[str], None]) -> Iterator[int]:
        """A job: the digest of the table as it is now, unless the session goes meanwhile."""
        copy = Copy(self._service.table)
        objects = copy.pieces()
        next(objects)  # the head is of this position

        def job() -> Iterator[int]:
            for _ in objects:
                yield ITEM
                if session not in self._service.home.sessions:
                    copy.drop()
                    return
            tell(copy.digest)

        return job()

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
        position = self._service.table.applied
        for session in list(self._open):
            self.close(session)
            self.chores.add(self._digest(session, partial(self._ended, session, position, reason)))

    def _ended(self, session: int, position: int, reason: str, digest: str) -> None:
        self._service.host.push(session, "dlm", "record", ("end", position, digest, reason))

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
