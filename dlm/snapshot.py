"""The replicated state of a lock table as bytes: all of it at once, or name by name while the table goes on (K15).

A state is a *head* – lives, lockspaces, counters – and a *row* for each name. Private contents are not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgpack

from dlm import checks, spaces
from dlm.failures import Failures
from dlm.life import Life
from dlm.names import Form, Name
from dlm.purge import LivesEnded
from vsync.types import RingId

if TYPE_CHECKING:
    from dlm.table import Table

__all__ = ["decode", "encode", "short"]

FORMAT = 2

Row = tuple[bytes, tuple[Any, ...]]


def encode(table: Table) -> bytes:
    """All of it, in a fixed order. Costs as much as there are names: for tests and small tables."""
    failures, rows = _as_if(table) if table.dues else (table.failures, _rows(table))
    packed: bytes = msgpack.packb((*_head(table), failures.encode(), tuple(row for _, row in sorted(rows))))
    return packed


def decode(table: Table, data: bytes, now: int) -> Table:
    """Fill a new table, of a node that owns no name in it, from the bytes of ``encode``."""
    *head, failures, rows = msgpack.unpackb(data, use_list=False)
    _put_head(table, head, now)
    table.failures = Failures.decode(failures, now)
    for row in rows:
        put(table, row)
    table.waits.settled()
    return table


def short(data: bytes) -> str:
    """What tells one encoded table from another, for people."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _head(table: Table) -> tuple[Any, ...]:
    lives = tuple(table.lives[node].encode() for node in sorted(table.lives))
    state = tuple(table.ring), table.applied, table.numbers
    return FORMAT, *state, lives, tuple(table.vacant), table.spaces.encode(), table.history.rolling.value


def _put_head(table: Table, head: Any, now: int) -> None:
    version, ring, applied, numbers, lives, vacant, rows, chain = head
    if version != FORMAT:
        raise ValueError(f"a lock table of format {version}")
    table.now = now
    table.ring, table.applied, table.numbers = RingId(*ring), applied, numbers
    for row in lives:
        life = Life.decode(row)
        table.lives[life.node] = life
    table.spaces, table.vacant = spaces.Spaces.decode(rows), dict.fromkeys(vacant)
    table.history.began, table.history.rolling = applied, checks.Rolling(chain)


def put(table: Table, row: tuple[Any, ...]) -> None:
    """A name of a table that is being filled."""
    key = row[0]
    name = Name.decode(row, table.mint, table.now)
    name.era = table.era
    table.names[key] = name
    table.forms[name.form] += 1
    table.spaces.count(key, 1)
    if name.form is Form.HANDOVER:
        table.handovers[key] = None
    if name.resource is not None:
        table.waits.take(key, name.resource)
        name.resource.history = table.history


def _rows(table: Table) -> Iterable[Row]:
    return ((key, name.encode(key)) for key, name in table.names.items())


def _as_if(table: Table) -> tuple[Failures, Iterable[Row]]:
    """Failures and rows, as if all that is due had been carried out."""
    endings = [due.ending if isinstance(due, LivesEnded) else {} for due in table.dues]
    failures, endings = table.failures.clone(endings)
    rows: list[Row] = []
    for key, name in table.names.items():
        row = name.encode(key)
        copy = Name.decode(row, _no_fences, table.now)
        for due, ending in zip(table.dues, endings, strict=True):
            if name.era < due.era:
                failures.concern(key, copy, ending)
                if not due.carry(key, copy):
                    break
        else:
            rows.append((key, copy.encode(key)))
    return failures, rows


def _no_fences() -> int:
    raise AssertionError("nothing is granted by what is due")
