"""State for joiners: the table as it was at their view, in chunks, while all go on (pitfalls K15, E1–E5).

One position per joiner: its view. The lowest full member, the *donor*, makes a copy of that position
(``dlm.snapshot``) and multicasts it in chunks. If it dies there is another view, and with it another transfer from
its beginning, so a partial state is never used (E5), and nobody but the donor needs to copy anything. The joiner
logs the ordered messages from its view on, and applies them when the state is whole, a few at a time; what is
ordered meanwhile goes to the end of the log. Chunks are ordered messages, but their content does not depend on
where they fall.

The donor takes its time: ``ROWS`` names in a chunk, ``RATE`` names a second, so that those who use locks meanwhile
do not notice (design §5.3). The joiner, whom it costs twice as much, keeps what has come and reads it when there is
time, a few names at a time (``dlm.work``): else all would wait for it, as the token does not go on meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from dlm import work
from dlm.catchup import Kept
from dlm.messages import Kind, Message, encode
from dlm.snapshot import Copy, Damage, Reader
from dlm.table import Table
from dlm.work import ITEM
from vsync.types import Member, RingId

__all__ = ["CHUNK_SIZE", "RATE", "READ", "ROWS", "Donor", "Joiner"]

CHUNK_SIZE = 16 * 1024  #: about so many bytes in one message, and no more ..
ROWS = 50  #: .. than so many names, but for one that is larger
LARGEST = 256 * 1024  #: a larger name is sent in pieces of this size
WINDOW = 4  #: chunks under way at once
READ = 32 * ITEM  #: units of a turn for reading (``dlm.work``): it goes on for long, and costs more than others
RATE = 12_000  #: names a second
BURST = 4 * ROWS  #: names at once, so that a small table is sent at once


class Donor:
    """The part of the member that sends."""

    def __init__(self, ring: RingId, table: Table, now: int) -> None:
        self.ring = ring
        self._copy = Copy(table)
        self._objects = self._copy.pieces()
        self._next = b""  #: of the stream, not sent yet
        self._last = False  #: the stream is at its end
        self._sent = self._delivered = 0
        self._credit, self._at = BURST, now
        self._rest = next(self._objects)  # the head is of this position

    @property
    def done(self) -> bool:
        """Whether every chunk has been delivered."""
        return self._last and not self._next and self._delivered == self._sent

    def drop(self) -> None:
        """There is another view."""
        self._copy.drop()

    def next_deadline(self) -> int | None:
        """When the next chunk is to be made (``refill``, ``due``)."""
        if self._next or self._last or self._sent >= self._delivered + WINDOW:
            return None
        if self._rest or self._credit >= ROWS:
            return self._at
        return self._at - (self._credit - ROWS) * 1_000_000 // RATE  # not before it is enough

    def refill(self, now: int) -> None:
        """Time has passed: more may be sent."""
        gained = (now - self._at) * RATE // 1_000_000
        if gained > 0:
            self._credit = min(BURST, self._credit + gained)
            self._at = now if self._credit == BURST else self._at + gained * 1_000_000 // RATE

    def due(self, made: bool = False) -> Iterator[bytes]:
        """The chunks that may be submitted now; call ``was_sent`` after each that was accepted. With ``made`` only
        what was there already, for when others wait.
        """
        while self._sent < self._delivered + WINDOW and (self._next if made else self._fill()):
            last = self._last and len(self._next) <= LARGEST
            yield encode(Kind.CHUNK, self.ring, 0, (*self.ring, self._sent, last, self._next[:LARGEST]))

    def was_sent(self) -> None:
        """The last chunk from ``due`` was accepted."""
        self._sent += 1
        self._next = self._next[LARGEST:]

    def _fill(self) -> bool:
        """See to it that there is a chunk to be sent."""
        if self._next:
            return True
        self._next, self._rest = self._rest, b""
        found = b""
        while not found and not self._last and self._credit >= ROWS:
            found = self._take()
        self._next += found
        return bool(self._next)

    def _take(self) -> bytes:
        """The objects of the next names; of names that have gone meanwhile there is nothing."""
        parts: list[bytes] = []
        size = 0
        while size < CHUNK_SIZE and len(parts) < ROWS:
            each = next(self._objects, None)
            if each is None:
                self._last = True
                break
            parts.append(each)
            size += len(each)
        self._credit -= len(parts)
        return b"".join(parts)

    def on_chunk(self, message: Message) -> None:
        """A chunk was delivered."""
        if message.body[:2] == tuple(self.ring) and message.body[2] == self._delivered:
            self._delivered += 1


class Joiner:
    """A joining member's part: what has come, and the log of ordered messages since its view."""

    def __init__(self, ring: RingId, me: int, now: int) -> None:
        self.ring = ring
        self.table = Table(me)
        self.received = 0  #: chunks
        self.position = 0  #: in the ring, of the last message that came
        self._reader = Reader(self.table, now)
        self._unread = self._all = False  #: of what has come, and whether that is all
        self._replaying = False  #: the state was there, and the log has been begun
        self._log: deque[tuple[int, Member, Message]] = deque()

    @property
    def whole(self) -> bool:
        """Whether the state is there, and only the log has to be applied."""
        return self._reader.whole

    @property
    def busy(self) -> bool:
        """Whether there is something for ``catch_up``."""
        return self._unread or self.whole

    def log(self, position: int, origin: Member, message: Message) -> None:
        """An ordered message that the state does not contain."""
        self.position = position
        self._log.append((position, origin, message))

    def on_chunk(self, message: Message, position: int) -> None:
        """Take a chunk; it is read by ``catch_up``."""
        seq, rep, index, last, piece = message.body
        if (seq, rep) != tuple(self.ring) or index != self.received:
            return
        self.received += 1
        self.position = position
        self._reader.put(piece)
        self._unread, self._all = True, last

    def catch_up(self, units: int, now: int, kept: Kept) -> tuple[int, bool]:
        """Read some of what has come, then apply some of the log; what counts is ``kept``. Returns the rest of the
        ``units``, and if all is done. Raises ``Damage`` if what was read is not, byte for byte, what was sent.
        """
        self.table.now = now
        if self._unread:
            reading = min(units, READ)
            left, done = work.spend(self._reader.read(), reading)
            units -= reading - left
            self._unread = not done
            if done and self._all and not self.whole:
                raise Damage("it ends before its end")
        if self._unread or not self.whole:
            return units, False
        if not self._replaying:
            self._replaying = True
            kept.begin(self.table.applied)
        return work.spend(self._applying(kept), units)

    def _applying(self, kept: Kept) -> Iterator[int]:
        while self._log:
            position, origin, message = self._log.popleft()
            if self.table.apply(origin, message) is not None:
                kept.add(position, origin, message)
            yield ITEM
