"""State for joiners: the table as it was at their view, in chunks, while all go on (pitfalls K15, E1–E5).

One position per joiner: its view. The lowest full member, the *donor*, makes a copy of that position
(``dlm.snapshot``) and multicasts it in chunks. If it dies there is another view, and with it another transfer from
its beginning, so a partial state is never used (E5), and nobody but the donor needs to copy anything. The joiner
logs the ordered messages from its view on, and applies them when the state is whole, a few at a time; what is
ordered meanwhile goes to the end of the log. Chunks are ordered messages, but their content does not depend on
where they fall.

The donor takes its time: ``ROWS`` names in a chunk, ``RATE`` names a second, so that those who use locks meanwhile
do not notice (design §5.3). What a chunk costs the joiner, several times as much as the donor, delays the token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from dlm import work
from dlm.messages import Kind, Message, encode
from dlm.snapshot import Copy, Damage, Reader
from dlm.table import Table
from dlm.work import ITEM
from vsync.types import Member, RingId

__all__ = ["CHUNK_SIZE", "RATE", "ROWS", "Donor", "Joiner"]

CHUNK_SIZE = 16 * 1024  #: about so many bytes in one message, and no more ..
ROWS = 100  #: .. than so many names, but for one that is larger
LARGEST = 256 * 1024  #: a larger name is sent in pieces of this size
WINDOW = 4  #: chunks under way at once
RATE = 20_000  #: names a second
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
        """When there is something to send again, as far as that depends on time."""
        if self._next or self._last or self._credit >= ROWS or self._sent >= self._delivered + WINDOW:
            return None
        return self._at + (ROWS - self._credit) * 1_000_000 // RATE

    def refill(self, now: int) -> None:
        """Time has passed: more may be sent."""
        gained = (now - self._at) * RATE // 1_000_000
        if gained > 0:
            self._credit, self._at = min(BURST, self._credit + gained), now

    def due(self) -> Iterator[bytes]:
        """The chunks that may be submitted now; call ``was_sent`` after each that was accepted."""
        while self._sent < self._delivered + WINDOW and self._fill():
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


Keep = Callable[[int, Member, Message], None]  #: takes the place of a message in the ring, and the message


class Joiner:
    """A joining member's part: what has come, and the log of ordered messages since its view."""

    def __init__(self, ring: RingId, me: int, now: int) -> None:
        self.ring = ring
        self.table = Table(me)
        self.received = 0  #: chunks
        self.position = 0  #: in the ring, of the last message that came
        self._reader = Reader(self.table, now)
        self.replaying = False  #: the state was there, and the log has been begun
        self._log: deque[tuple[int, Member, Message]] = deque()

    @property
    def whole(self) -> bool:
        """Whether the state is there, and only the log has to be applied."""
        return self._reader.whole

    def log(self, position: int, origin: Member, message: Message) -> None:
        """An ordered message that the state does not contain."""
        self.position = position
        self._log.append((position, origin, message))

    def on_chunk(self, message: Message, position: int) -> None:
        """Take a chunk. Raises ``Damage`` if what was read is not, byte for byte, what was sent."""
        seq, rep, index, last, piece = message.body
        if (seq, rep) != tuple(self.ring) or index != self.received:
            return
        self.received += 1
        self.position = position
        self._reader.feed(piece)
        if last and not self.whole:
            raise Damage("it ends before its end")

    def catch_up(self, units: int, now: int, keep: Keep) -> tuple[int, bool]:
        """Apply some of the log and ``keep`` what counts. Returns the rest of the ``units``, and if all is done."""
        self.table.now = now
        self.replaying = True
        return work.spend(self._applying(keep), units)

    def _applying(self, keep: Keep) -> Iterator[int]:
        while self._log:
            position, origin, message = self._log.popleft()
            if self.table.apply(origin, message) is not None:
                keep(position, origin, message)
            yield ITEM
