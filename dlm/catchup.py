"""Catching up by messages: a member whose state is a prefix of the one that goes on (pitfalls K4, A6).

Members that left one primary ring in different company may have delivered different amounts of it. Their states
have one name and are prefixes of one history, and whoever has the longest one goes on at once. The others need not
lose their locks for that: what they miss was received by somebody who is present, and above the line up to which
*everybody* has received it there is little. So every member keeps (``Kept``) the messages above that line; one of
those who go on, the *lender*, multicasts what the one furthest behind misses (``Lender``); and each who is behind
keeps its life, logs what is ordered since the view, applies what it has missed, then the view itself, then the log
(``Catcher``). So it decides about its private names itself, as if it had never been away.

All that is lent goes in the ordered stream, but its content does not depend on where it falls. Another view ends
it: who has not caught up by then stands at its old state still, which has been overtaken, and begins anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import msgpack

from dlm.messages import Kind, Message, decode, encode
from dlm.recovery import Held
from vsync.types import Member, RingId

__all__ = ["PIECE", "Catcher", "Kept", "Lender"]

PIECE = 256 * 1024  #: bytes in one message
WINDOW = 4  #: pieces under way at once


class Kept:
    """The messages applied since the primary view that not everybody there is known to have, and to know of.

    ``base``: the position up to which nothing is kept, as every member has applied it, or will have when it leaves
    the ring. Having received it is not enough for that: behind a SAFE message that is not known to be stable the
    prefix ends for who goes to a minority, whatever else it has. So ``base`` follows the ring's stable line two
    visits of the token later, when all members know that line.
    """

    def __init__(self) -> None:
        self.base = 0
        self._whole = False  #: from the beginning of the view
        self._rows: deque[tuple[int, Member, Message]] = deque()
        self._lines: deque[int] = deque(maxlen=3)  #: the stable line at the last visits, the oldest first
        self._growing = False

    @property
    def offer(self) -> int:
        """Who has applied at least so much can be lent the rest. Zero if nothing has been dropped since the view:
        who installs that view on the way into the next one stands at its beginning, and cannot say where that is
        (K7).
        """
        return 0 if self._whole else self.base

    def begin(self, applied: int) -> None:
        """A primary view, whose state is at this position: what was before it has been settled by it."""
        self.base, self._whole = applied, True
        self._rows.clear()
        self._lines.clear()
        self._growing = True

    def stop(self) -> None:
        """The ring is left: its stable line moves no more."""
        self._growing = False

    def add(self, position: int, origin: Member, message: Message) -> None:
        """A message was applied; ``position`` is its place in the ring."""
        self._rows.append((position, origin, message))

    def trim(self, stable: int) -> None:
        """A visit of the token: everybody has what stands below this place in the ring."""
        rows, lines = self._rows, self._lines
        lines.append(stable)
        if self._growing and len(lines) == lines.maxlen:
            while rows and rows[0][0] < lines[0]:
                rows.popleft()
                self.base, self._whole = self.base + 1, False

    def since(self, applied: int) -> list[Held]:
        """What was applied after this position, which is not before ``base``."""
        return [(origin, message) for _, origin, message in list(self._rows)[applied - self.base :]]


Loan = tuple[list[Held], list[Held]]  #: what was applied in the epoch of the old view, and of the new one


class Lender:
    """The part of the member that has what others miss."""

    def __init__(self, ring: RingId, applied: int, before: Iterable[Held], after: Iterable[Held]) -> None:
        """``before`` follows position ``applied``, in the epoch of the old view; ``after`` in that of the new."""
        self.ring = ring
        whole: bytes = msgpack.packb((applied, _rows(before), _rows(after)))
        self._pieces = [whole[start : start + PIECE] for start in range(0, len(whole), PIECE)]
        self._sent = self._delivered = 0

    @property
    def pieces(self) -> int:
        """How many messages it takes."""
        return len(self._pieces)

    @property
    def done(self) -> bool:
        """Whether all of it has been delivered."""
        return self._delivered == len(self._pieces)

    def due(self) -> Iterator[bytes]:
        """The messages that may be submitted now; call ``was_sent`` after each that was accepted."""
        total = len(self._pieces)
        for index in range(self._sent, min(total, self._delivered + WINDOW)):
            yield encode(Kind.CATCH_UP, self.ring, 0, (*self.ring, index, total, self._pieces[index]))

    def was_sent(self) -> None:
        """The last message from ``due`` was accepted."""
        self._sent += 1

    def on_piece(self, message: Message) -> None:
        """A piece was delivered."""
        if message.body[:2] == tuple(self.ring) and message.body[2] == self._delivered:
            self._delivered += 1


class Catcher:
    """The part of a member that is behind, at position ``applied``."""

    def __init__(self, ring: RingId, applied: int) -> None:
        self.ring = ring
        self.log: list[tuple[int, Member, Message]] = []  #: ordered since the view, with the place in the ring
        self._applied = applied
        self._pieces: list[bytes] = []

    def on_piece(self, message: Message) -> Loan | None:
        """Take a piece. When it is whole: what to apply before the view gives the state its new name, and after.

        Raises ``ValueError`` if what has come cannot be used.
        """
        seq, rep, index, total, piece = message.body
        if (seq, rep) != tuple(self.ring) or index != len(self._pieces):
            return None
        self._pieces.append(piece)
        if len(self._pieces) < total:
            return None
        applied, before, after = msgpack.unpackb(b"".join(self._pieces), use_list=False)
        if applied > self._applied:
            raise ValueError(f"the loan begins at position {applied}, this node stands at {self._applied}")
        return _held(before[self._applied - applied :]), _held(after)


def _rows(held: Iterable[Held]) -> list[tuple[int, int, bytes]]:
    return [(*origin, encode(message.kind, message.ring, message.serial, message.body)) for origin, message in held]


def _held(rows: Sequence[tuple[int, int, bytes]]) -> list[Held]:
    return [(Member(node, incarnation), decode(payload)) for node, incarnation, payload in rows]
