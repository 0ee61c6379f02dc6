"""The replicated state of a lock table as bytes: all at once, or name by name while the table goes on (K15, E1–E4).

A state is a stream of msgpack objects: a *head* – lives, lockspaces, counters –, a *row* for each name, then what
names concern failures, and an end that tells the number of them all and a sum over their hashes. The order of rows
does not matter. Private contents are not in it.

``Copy`` gives out the state of one position although the table changes: a name is written down before its first
change, by ``Table.find``, like what is due on it (``dlm.purge``). ``Reader`` makes a table of such a stream, piece
by piece as it comes. What it has made it writes down again: the sums are equal if that is, byte for byte, what was
sent (R4, S60).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgpack

from dlm import checks, spaces
from dlm.failures import Failures, concerned
from dlm.life import Life
from dlm.names import Form, Name
from dlm.purge import Due, LivesEnded
from dlm.work import ITEM
from vsync.types import RingId

if TYPE_CHECKING:
    from dlm.table import Table

__all__ = ["Copy", "Damage", "Reader", "decode", "digest", "encode"]

FORMAT = 2
MODULUS = 1 << 64

_PACK = msgpack.Packer().pack


class Damage(ValueError):
    """A stream is not a state, or not the one that was written."""


def encode(table: Table) -> bytes:
    """All of it, equal bytes for equal states. It takes as long as there are names: for tests and small tables."""
    return b"".join([*_objects(table), _end(*_summed(_objects(table)))])


def digest(table: Table) -> str:
    """A short name of the state."""
    return f"{_summed(_objects(table))[1]:016x}"


def decode(table: Table, data: bytes, now: int) -> Table:
    """Fill a new table, of a node that owns no name in it. Raises ``Damage``."""
    reader = Reader(table, now)
    reader.feed(data)
    if not reader.whole:
        raise Damage("it ends before its end")
    return table


# -- writing -------------------------------------------------------------------------------------------------


def _objects(table: Table) -> list[bytes]:
    """The stream but for its end, rows sorted, as if all that is due had been carried out."""
    failures, rows = _as_if(table) if table.dues else (table.failures, _rows(table))
    more = sorted(_PACK(each) for each in concerned(failures.every))
    return [_head(table, failures), *(_PACK(row) for row in sorted(rows)), *more]


def _head(table: Table, failures: Failures) -> bytes:
    lives = tuple(table.lives[node].encode() for node in sorted(table.lives))
    state = tuple(table.ring), table.applied, table.numbers, lives, tuple(table.vacant)
    packed: bytes = _PACK((FORMAT, *state, table.spaces.encode(), failures.encode(), table.history.rolling.value))
    return packed


def _end(count: int, total: int) -> bytes:
    packed: bytes = _PACK((count, total))
    return packed


def _summed(objects: Iterable[bytes]) -> tuple[int, int]:
    count = total = 0
    for each in objects:
        count, total = count + 1, (total + _hash(each)) % MODULUS
    return count, total


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _rows(table: Table) -> Iterable[tuple[Any, ...]]:
    return (name.encode(key) for key, name in table.names.items())


def _as_if(table: Table) -> tuple[Failures, Iterable[tuple[Any, ...]]]:
    """Failures and rows, as if all that is due had been carried out."""
    endings = [due.ending if isinstance(due, LivesEnded) else {} for due in table.dues]
    failures, endings = table.failures.clone(endings)
    rows: list[tuple[Any, ...]] = []
    for key, name in table.names.items():
        copy = Name.decode(name.encode(key), _no_fences, table.now)
        for due, ending in zip(table.dues, endings, strict=True):
            if name.era < due.era:
                failures.concern(key, copy, ending)
                if not due.carry(key, copy):
                    break
        else:
            rows.append(copy.encode(key))
    return failures, rows


def _no_fences() -> int:
    raise AssertionError("nothing is granted by what is due")


class Copy(Due):
    """The state at one position, on its way out. It keeps the table's names apart from later changes until it is
    through (``pieces``) or ``dropped``. Several can be made at a time.
    """

    __slots__ = ("_failures", "_keys", "_saved", "_table", "count", "total")

    holds = True

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.count = self.total = 0  #: of the objects given out
        self._table = table
        self._keys = list(table.names)
        self._failures = list(table.failures.every)
        self._saved: dict[bytes, bytes] = {}  #: rows of names that have changed since
        table.dues.append(self)

    def settle(self, table: Table, key: bytes, name: Name) -> bool:
        """Somebody is about to look at this name, and perhaps to change it."""
        self._saved[key] = _PACK(name.encode(key))
        return True

    def carry(self, key: bytes, name: Name) -> bool:
        """Nothing happens to the name."""
        return True

    @property
    def digest(self) -> str:
        """When it is through: what ``digest`` says of the table at its position."""
        return f"{self.total:016x}"

    def drop(self) -> None:
        """Nobody wants it any more."""
        self._saved.clear()
        if self in self._table.dues:
            self._table.dues.remove(self)

    def pieces(self) -> Iterator[bytes]:
        """The stream, object by object; nothing for a name that has gone. To be asked for the first one before
        anything is applied to the table.
        """
        yield self._counted(_head(self._table, self._table.failures))
        for key in self._keys:
            yield self._row(key)
        self.drop()
        # Which names they concern follows from this position, but it may have been noticed since (``dlm.purge``).
        for each in concerned(self._failures):
            yield self._counted(_PACK(each))
        yield _end(self.count, self.total)

    def _row(self, key: bytes) -> bytes:
        name = self._table.names.get(key)
        if name is not None and name.era < self.era:
            self._table.bring(key, name, self.era)
        saved = self._saved.pop(key, None)
        return b"" if saved is None else self._counted(saved)

    def _counted(self, data: bytes) -> bytes:
        self.count += 1
        self.total = (self.total + _hash(data)) % MODULUS
        return data


# -- reading -------------------------------------------------------------------------------------------------


class Reader:
    """Fills a new table, of a node that owns no name in it, from the bytes of a stream as they come."""

    def __init__(self, table: Table, now: int) -> None:
        self.whole = False
        self._table = table
        self._now = now
        self._count = self._total = 0
        self._unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=0)

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere, and read all that is whole. Raises ``Damage``."""
        self.put(data)
        for _ in self.read():
            pass

    def put(self, data: bytes) -> None:
        """The next bytes, cut anywhere, to be read later."""
        self._unpacker.feed(data)

    def read(self) -> Iterator[int]:
        """Read what is there, object by object; gives the cost of each (``dlm.work``). Raises ``Damage``."""
        try:
            for each in self._unpacker:
                self._take(each)
                yield ITEM
        except Damage:
            raise
        except Exception as error:
            raise Damage(f"it cannot be read: {error!r}") from error

    def _take(self, row: tuple[Any, ...]) -> None:
        if self.whole:
            raise Damage("it goes on after its end")
        if not self._count:
            _put_head(self._table, row, self._now)
            again = _head(self._table, self._table.failures)
        elif len(row) == 2:
            self._finish(*row)
            return
        elif isinstance(row[0], bytes):
            _put(self._table, row)
            again = _PACK(self._table.names[row[0]].encode(row[0]))
        else:
            again = _PACK(self._table.failures.put_concerned(row))
        self._count, self._total = self._count + 1, (self._total + _hash(again)) % MODULUS

    def _finish(self, count: int, total: int) -> None:
        if (count, total) != (self._count, self._total):
            raise Damage("what was read is not what was written")
        self._table.waits.settled()
        self.whole = True


def _put_head(table: Table, row: tuple[Any, ...], now: int) -> None:
    version, ring, applied, numbers, lives, vacant, registry, failures, chain = row
    if version != FORMAT:
        raise Damage(f"it is of format {version}, this release has {FORMAT}")
    table.now = now
    table.ring, table.applied, table.numbers = RingId(*ring), applied, numbers
    for life in map(Life.decode, lives):
        table.lives[life.node] = life
    table.spaces, table.vacant = spaces.Spaces.decode(registry), dict.fromkeys(vacant)
    table.failures = Failures.decode(failures, now)
    table.history.began, table.history.rolling = applied, checks.Rolling(chain)


def _put(table: Table, row: tuple[Any, ...]) -> None:
    key = row[0]
    name = Name.decode(row, table.mint, table.now)
    name.era = table.era
    table.names[key] = name
    table.forms[name.form] += 1
    table.spaces.count(key, 1)
    if name.form is Form.HANDOVER:
        table.handovers[key] = None
    if name.resource is not None:
        name.resource.more = table.more
        table.waits.take(key, name.resource)
        name.resource.history = table.history
