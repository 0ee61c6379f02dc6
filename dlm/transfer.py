"""State for joiners: the table as it was at their view, in chunks, while all go on (pitfalls K15, E1–E5).

One position per joiner: its view. Every full member keeps the encoded table of that position until all chunks
have been delivered; the lowest full member sends them. If it dies there is another view, and with it another
transfer, from another donor, so a partial state is never used (E5). The joiner logs the ordered messages from
its view on and replays them after installing. Chunks are ordered messages, but their content does not depend
on where they fall.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from dlm.messages import Kind, Message, encode
from dlm.recovery import Held
from dlm.table import Table
from vsync.types import Member, RingId

__all__ = ["CHUNK_SIZE", "DamagedState", "Donor", "Joiner", "digest"]

CHUNK_SIZE = 256 * 1024  #: bytes of snapshot in one message
WINDOW = 4  #: chunks under way at once; paces the donor


class DamagedState(Exception):
    """What has come is not the donor's table."""


def digest(snapshot: bytes) -> bytes:
    """What tells one encoded table from another."""
    return hashlib.blake2b(snapshot, digest_size=16).digest()


class Donor:
    """A full member's part: the snapshot, and how far it has got. Only the donor itself sends."""

    def __init__(self, ring: RingId, snapshot: bytes, sending: bool) -> None:
        self.ring = ring
        self.sending = sending
        self._snapshot = snapshot
        self.total = max(1, -(-len(snapshot) // CHUNK_SIZE))
        self.sent = 0
        self.delivered = 0

    @property
    def done(self) -> bool:
        """Whether every chunk has been delivered."""
        return self.delivered >= self.total

    def due(self) -> Iterator[bytes]:
        """The chunks that may be submitted now; call ``was_sent`` after each that was accepted."""
        while self.sending and self.sent < min(self.total, self.delivered + WINDOW):
            piece = self._snapshot[self.sent * CHUNK_SIZE : (self.sent + 1) * CHUNK_SIZE]
            whole = digest(self._snapshot) if self.sent + 1 == self.total else b""
            yield encode(Kind.CHUNK, self.ring, 0, (*self.ring, self.sent, self.total, piece, whole))

    def was_sent(self) -> None:
        """The last chunk from ``due`` was accepted."""
        self.sent += 1

    def on_chunk(self, message: Message) -> None:
        """A chunk was delivered."""
        if message.body[:2] == tuple(self.ring) and message.body[2] == self.delivered:
            self.delivered += 1


class Joiner:
    """A joining member's part: chunks, and the log of ordered messages since its view."""

    def __init__(self, ring: RingId) -> None:
        self.ring = ring
        self._pieces: list[bytes] = []
        self._log: list[Held] = []
        self._digest = b""
        self.total = 0

    @property
    def received(self) -> int:
        """Chunks so far."""
        return len(self._pieces)

    def log(self, origin: Member, message: Message) -> None:
        """An ordered message that the snapshot does not contain."""
        self._log.append((origin, message))

    def on_chunk(self, message: Message) -> bool:
        """Take a chunk; true when the snapshot is whole."""
        seq, rep, index, total, piece, whole = message.body
        if (seq, rep) == tuple(self.ring) and index == len(self._pieces):
            self._pieces.append(piece)
            self.total, self._digest = total, whole
        return 0 < self.total == len(self._pieces)

    def finish(self, me: int, now: int) -> Table:
        """The table at the position of the last message logged.

        Raises ``DamagedState`` unless the table read is, byte for byte, the one that was sent (R4, S60).
        """
        try:
            table = Table.decode(me, b"".join(self._pieces), now)
            same = digest(table.encode()) == self._digest
        except Exception as error:
            raise DamagedState(f"it cannot be read: {error!r}") from error
        if not same:
            raise DamagedState("what was read is not what was sent")
        for origin, message in self._log:
            table.apply(origin, message)
        return table
