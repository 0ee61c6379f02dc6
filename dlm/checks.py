"""Do all members have the same table? A rolling checksum, compared every so often (locks.md §8, R4, S60).

Everything that the ordered stream does to shared names goes into one CRC (``Rolling``), event by event. At every
``EVERY``-th position each member takes a *mark* (``mark``): the CRC, the counters, the lives. So what was decided
otherwise is found at the next mark.

The lowest full member multicasts its mark (CHECK): one message in ``EVERY``, and none if nothing happens. Who has
the same says nothing. Who has another says so (VOTE), and then everybody does: full members with their marks,
others without. When all have voted everybody knows the same, in the same order, and draws the same conclusion: most
of the votes are right, and if no value has most, the lowest member's is. Who has another one is *diverged*, and
begins anew.

With each mark one of the full members, in turns, names some names (LOOK), others each time, until all have had
their turn. That is a message like those about locks: at its position everybody adds the state of those names to the
CRC. So what was changed in memory, and by no decision, is found at the mark that follows.

A view ends a vote that is under way; the next check finds again what there is to find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgpack

from dlm.messages import Kind, Message, encode
from vsync.errors import Backpressure
from vsync.service import Host
from vsync.types import NO_RING, Member, RingId

if TYPE_CHECKING:
    from dlm.life import Life
    from dlm.table import Effects, Table

__all__ = ["EVERY", "Checker", "Rolling", "mark", "on_look", "wrong"]

EVERY = 1024  #: positions from one mark to the next; the same at all members
BATCH = 256  #: events that are packed at once
NAMES = 128  #: names in one LOOK ..
NAME_BYTES = 8192  #: .. and about how long they may be, all together
KEPT = 16  #: marks
MISSING = -1  #: the vote of a full member that should have a mark there and has none

_PACK = msgpack.Packer().pack


class Rolling:
    """A checksum of all rows so far, independent of how they came in batches."""

    __slots__ = ("_chain", "_fresh")

    def __init__(self, chain: int = 0) -> None:
        self._chain = chain
        self._fresh: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """One more."""
        self._fresh.append(row)
        if len(self._fresh) >= BATCH:
            self._fold()

    @property
    def value(self) -> int:
        """As of the last row."""
        if self._fresh:
            self._fold()
        return self._chain

    def _fold(self) -> None:
        self._chain = crc32(b"".join(map(_PACK, self._fresh)), self._chain)
        self._fresh.clear()


def mark(table: Table) -> None:
    """Take a mark of the table at its position. Called at every position that is a multiple of ``EVERY``."""
    lives = [table.lives[node].encode() for node in sorted(table.lives)]
    state = tuple(table.ring), table.applied, table.numbers, lives, table.spaces.encode(), table.failures.mark()
    code = crc32(_PACK(state), table.history.rolling.value)
    marks = table.marks
    marks[table.applied] = code
    while len(marks) > KEPT:
        del marks[min(marks)]


def on_look(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    """LOOK: these names are as they are; who thinks otherwise is found at the next mark."""
    for key in body[0]:
        name = table.find(key)
        table.history.rolling.add((key, None if name is None else name.encode(key)))


def wrong(votes: Mapping[int, int | None]) -> list[int]:
    """The nodes that have diverged, by what each has said (``None``: nothing)."""
    said = {node: value for node, value in sorted(votes.items()) if value is not None}
    if not said:
        return []
    value, count = Counter(said.values()).most_common(1)[0]
    right = value if 2 * count > len(said) else said[min(said)]
    return [node for node, value in said.items() if value != right]


class Checker:
    """One member's part in comparing marks. Pure."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ring = NO_RING  #: of the primary view in which marks are compared
        self._voters: frozenset[int] = frozenset()
        self._full: list[int] = []  #: nodes with a full table; the first of them sends CHECK
        self._position = 0  #: of the vote that is under way
        self._voted = 0  #: position of this node's last vote
        self._votes: dict[int, int | None] = {}
        self._due: list[bytes] = []
        self._turns: Iterator[bytes] = iter(())  #: the names whose turn it is next
        self.checked = 0  #: the last position at which a mark was compared
        self.found = 0  #: divergences of anybody

    def entered(self, ring: RingId, voters: Iterable[int], full: Iterable[int]) -> None:
        """A primary view: its members that run the service, and those of them that begin with a full table."""
        self._ring, self._voters = ring, frozenset(voters)
        self._full = sorted(full) if len(self._voters) > 1 else []
        self._position = self._voted = 0
        self._votes.clear()
        self._due.clear()
        self._turns = iter(())

    def left(self) -> None:
        """No primary view, or no life in it."""
        self.entered(NO_RING, (), ())

    def applied(self, table: Table) -> tuple[bytes, ...]:
        """A message was applied, not during an installation. Returns the names to be looked at next, if any."""
        full, me, at = self._full, self._host.me.node, table.applied
        if at % EVERY or not full or at not in table.marks:
            return ()
        if me == full[0]:
            self._send(Kind.CHECK, at, table.marks[at])
        if me != full[at // EVERY % len(full)]:
            return ()
        found = self._some()
        if not found:
            self._turns = iter(list(table.names))
            found = self._some()
        return found

    def _some(self) -> tuple[bytes, ...]:
        found: list[bytes] = []
        size = 0
        while len(found) < NAMES and size < NAME_BYTES and (key := next(self._turns, None)) is not None:
            found.append(key)
            size += len(key)
        return tuple(found)

    def flush(self) -> None:
        """There may be room in the send queue."""
        while self._due:
            try:
                self._host.submit(self._due[0])
            except Backpressure:
                return
            del self._due[0]

    def deliver(self, origin: Member, message: Message, table: Table | None) -> bool:
        """A CHECK or VOTE; ``table``: if it is complete. True: this node has diverged."""
        seq, rep, position, value = message.body
        if (seq, rep) != tuple(self._ring):
            return False
        mine = None if table is None else _own(table, position)
        if message.kind == Kind.CHECK:
            self.checked = position
            if mine is not None and mine != value:
                self._vote(position, mine)
            return False
        if position < self._position:
            return False  # the next vote has begun: who was late is heard there
        if position > self._position:
            self._position = position
            self._votes.clear()
        self._vote(position, mine)
        self._votes[origin.node] = value
        if self._voters - self._votes.keys():
            return False
        return self._judge(position)

    def _judge(self, position: int) -> bool:
        guilty, said = wrong(self._votes), dict(sorted(self._votes.items()))
        self._votes.clear()
        if not guilty:
            return False
        self.found += 1
        values = {str(node): _hex(value) for node, value in said.items()}
        self._host.event("dlm.diverged", position=position, nodes=guilty, values=values)
        return self._host.me.node in guilty

    def _vote(self, position: int, mine: int | None) -> None:
        if self._voted < position:
            self._voted = position
            self._send(Kind.VOTE, position, mine)

    def _send(self, kind: Kind, position: int, value: int | None) -> None:
        self._due.append(encode(kind, self._ring, 0, (*self._ring, position, value)))
        self.flush()


def _own(table: Table, position: int) -> int | None:
    """This node's mark; ``None`` if it was no full member then, or has forgotten it."""
    found = table.marks.get(position)
    if found is None and table.history.began < position and position > min(table.marks, default=0):
        return MISSING
    return found


def _hex(value: int | None) -> str:
    return "-" if value is None else "missing" if value == MISSING else f"{value:08x}"
