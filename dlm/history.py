"""Who held what at which position: the last events of the lock table, as far as this node knows them.

An *event* is what happened to one lock (granted, converted, waiting, refused, cancelled, released, lost, orphaned)
or to one name (private, handover, shared, free). It carries the position in the ordered stream, and what the lock
held before and holds now; so what was held at any position that is still known follows by taking back, one by one,
what has happened since (``held_at``). There are two rings of the same length, and one more:

* ``shared`` – what follows from the ordered stream; the same at every full member, but for the local clock;
* ``own`` – what this node has decided alone in its private names. Those events carry the position of the last
  ordered event before them, and stand in a ring of their own: a busy private name does not push out the rest.

Other nodes see of a private name that it is private; what is held there they learn when it is published.

What a view does to names that nobody waits for may be done later, name by name (``dlm.purge``). Those events carry
the position of the view and stand in a third ring, ``late``, as they come in no order of positions.

All rings are filled by ``dlm.resource`` and ``dlm.table``, once for each change: two tuples and an append.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from dlm.checks import Rolling
from dlm.lock import Key, Lock
from dlm.messages import split_key
from dlm.modes import IVVALBLK, NAMES, NONE, VALBLK

if TYPE_CHECKING:
    from dlm.names import Name
    from dlm.resource import Resource
    from dlm.table import Table

__all__ = [
    "LIMIT", "SILENT", "Event", "Held", "History", "Late", "Past", "Silent", "held_at", "past", "plain", "recent",
]  # fmt: skip

LIMIT = 10_000  #: events in each of the two rings

#: Position, name, what, lock, mode, asked, fence, mode before, fence before, pid, program, code.
Row = tuple[int, bytes, str, Key, int, int, int, int, int, int, str, str]
FORMS = ("private", "shared", "handover")  #: of a name, by ``dlm.names.Form``


class Held(NamedTuple):
    """A lock that holds something."""

    mode: int
    fence: int
    pid: int
    program: str


Holders = dict[Key, Held]


class Event(NamedTuple):
    """One event. ``holders`` belongs to events of names: who held what when the form changed, if that is known."""

    row: Row
    at: int  #: local clock
    own: bool = False  #: decided by this node alone
    holders: Holders | None = None


class Past(NamedTuple):
    """A name at a position. ``owner`` is 0 unless it is private or in handover; ``holders`` ``None``: not known."""

    form: str
    owner: int
    holders: Holders | None


class History:
    """The two rings of one table."""

    __slots__ = ("_table", "began", "last_write", "late", "lost", "own", "rolling", "shared", "written")

    def __init__(self, table: Table, limit: int = LIMIT) -> None:
        self._table = table
        self.began = 0  #: position before the first event
        self.shared: deque[tuple[Any, ...]] = deque(maxlen=limit)
        self.own: deque[tuple[Any, ...]] = deque(maxlen=limit)
        self.late: deque[tuple[Any, ...]] = deque(maxlen=limit)
        self.lost = 0  #: the last position of which an event of ``late`` has been dropped
        self.rolling = Rolling()
        self.written: dict[bytes, int] = {}  #: lately: the position of the last write to the value block (C14)
        self.last_write = 0  #: the position of the last one of all

    def resize(self, limit: int) -> None:
        """Keep the last ``limit`` events of each kind."""
        self.shared = deque(self.shared, limit)
        self.own = deque(self.own, limit)
        self.late = deque(self.late, limit)

    # -- what the resources tell -----------------------------------------------------------------------------

    def changed(self, resource: Resource, lock: Lock, what: str, mode: int, fence: int, code: str = "") -> None:
        """A lock holds something else than ``mode`` with ``fence``."""
        table, whose = self._table, lock.whose
        row = (
            table.applied, resource.name, what, lock.key, lock.mode, lock.asked, lock.fence,
            mode, fence, whose.pid, whose.program, code,
        )  # fmt: skip
        if resource.waits is not None:
            self.shared.append((row, table.now))
            self.rolling.add(row)
        else:
            self.own.append((row, table.now, True))

    def ended(self, resource: Resource, lock: Lock, what: str, code: str = "") -> None:
        """A lock is gone."""
        table, mode, whose = self._table, lock.mode, lock.whose
        row = (
            table.applied, resource.name, what if mode != NONE else "cancelled", lock.key, NONE, lock.asked, 0,
            mode, lock.fence, whose.pid, whose.program, code,
        )  # fmt: skip
        if resource.waits is not None:
            self.shared.append((row, table.now))
            self.rolling.add(row)
        else:
            self.own.append((row, table.now, True))

    def asked(self, resource: Resource, lock: Lock, what: str, code: str = "") -> None:
        """Something has become of a request, and nothing of what the lock holds."""
        self.changed(resource, lock, what, lock.mode, lock.fence, code)

    def wrote(self, resource: Resource, flags: int) -> None:
        """The value block was written, or declared not valid, if these flags say so."""
        if flags & (VALBLK | IVVALBLK) and resource.waits is not None:
            self.written[resource.name] = self.last_write = self._table.applied

    def settled(self, applied: int) -> None:
        """All members have what was applied up to here: such writes cannot get lost any more."""
        due = [key for key, position in self.written.items() if position <= applied]
        for key in due:
            del self.written[key]

    # -- what the table tells --------------------------------------------------------------------------------

    def form(self, key: bytes, what: str, node: int, resource: Resource | None, code: str = "") -> None:
        """A name has got another form: ``node`` is the owner, ``code`` for one that is free the form it had."""
        row = (self._table.applied, key, what, (node, 0, 0), NONE, NONE, 0, NONE, 0, 0, "", code)
        holders = _holders(resource) if resource is not None else {} if what == "private" else None
        self.shared.append((row, self._table.now, False, holders))
        self.rolling.add(row)

    def freed(self, key: bytes, name: Name) -> None:
        """A name has gone from the table."""
        self.form(key, "free", name.owner, name.resource, FORMS[name.form])

    # -- questions -------------------------------------------------------------------------------------------

    @property
    def since(self) -> int:
        """The first position that is known as a whole."""
        since = self.shared[0][0][0] if len(self.shared) == self.shared.maxlen else self.began
        return max(since, self.lost)

    @property
    def own_since(self) -> int:
        """The same of what this node has decided alone."""
        return self.own[0][0][0] if len(self.own) == self.own.maxlen else self.began

    def events(self, key: bytes) -> list[Event]:
        """All events of a name that are kept, in order: what is ordered comes before what was done since."""
        rings = self.shared, self.late, self.own
        found = [Event(*each) for ring in rings for each in ring if each[0][1] == key]
        found.sort(key=lambda event: (event.row[0], event.own))  # stable
        return found


class Late:
    """Tells the history of what has happened at ``position``, at local time ``at``, and is carried out now."""

    __slots__ = ("_at", "_history", "_position")

    def __init__(self, history: History, position: int, at: int) -> None:
        self._history = history
        self._position = position
        self._at = at

    def ended(self, resource: Resource, lock: Lock, what: str, code: str = "") -> None:
        """See ``History``."""
        mode = lock.mode
        row = resource.name, what if mode != NONE else "cancelled", lock.key, NONE, lock.asked, 0, mode, lock.fence
        self._add((*row, lock.pid, lock.program, code), None)

    def freed(self, key: bytes, name: Name) -> None:
        """See ``History``."""
        holders = _holders(name.resource) if name.resource is not None else None
        row = key, "free", (name.owner, 0, 0), NONE, NONE, 0, NONE, 0, 0, "", FORMS[name.form]
        self._add(row, holders)

    def changed(self, resource: Resource, lock: Lock, what: str, mode: int, fence: int, code: str = "") -> None:
        """Nobody is granted anything late."""
        raise AssertionError(f"{resource.name!r}: {what} too late")

    def asked(self, resource: Resource, lock: Lock, what: str, code: str = "") -> None:
        """Nobody asks for anything late."""
        raise AssertionError(f"{resource.name!r}: {what} too late")

    def wrote(self, resource: Resource, flags: int) -> None:
        """See ``History``."""
        written = self._history.written
        if flags & (VALBLK | IVVALBLK):
            written[resource.name] = max(written.get(resource.name, 0), self._position)

    def _add(self, row: tuple[Any, ...], holders: Holders | None) -> None:
        ring = self._history.late
        if len(ring) == ring.maxlen:
            self._history.lost = max(self._history.lost, ring[0][0][0])
        ring.append(((self._position, *row), self._at, False, holders))


class Silent:
    """For contents that nobody keeps a history of."""

    def changed(self, resource: Resource, lock: Lock, what: str, mode: int, fence: int, code: str = "") -> None:
        """See ``History``."""

    def ended(self, resource: Resource, lock: Lock, what: str, code: str = "") -> None:
        """See ``History``."""

    def asked(self, resource: Resource, lock: Lock, what: str, code: str = "") -> None:
        """See ``History``."""

    def wrote(self, resource: Resource, flags: int) -> None:
        """See ``History``."""


SILENT = Silent()


def _holders(resource: Resource) -> Holders:
    locks = sorted(resource.locks.items())
    return {key: Held(lock.mode, lock.fence, lock.pid, lock.program) for key, lock in locks if lock.mode != NONE}


def held_at(table: Table, key: bytes, position: int) -> Past:
    """Who held ``key`` after the event at ``position``, and before the next. Raises ``ValueError`` if that is not
    known (any more, or yet); the text says what is.
    """
    history = table.history
    if not history.since <= position <= table.applied:
        raise ValueError(f"known here: positions {history.since} to {table.applied}")
    name = table.find(key)
    past = Past("free", 0, {})
    if name is not None:
        known = name.resource is not None
        past = Past(FORMS[name.form], name.owner, _holders(name.resource) if known and name.resource else None)
    for event in reversed(history.events(key)):
        if event.row[0] <= position:
            break
        past = _before(past, event)
    if past == ("private", table.me, past.holders) and position < history.own_since:
        past = past._replace(holders=None)
    return past


def _before(past: Past, event: Event) -> Past:
    """What there was before the event."""
    _, _, what, who, _, _, _, mode, fence, pid, program, code = event.row
    if what == "shared":
        return Past("handover", who[0], None) if who[0] else Past("free", 0, {})
    if what == "handover":
        return Past("private", who[0], event.holders)
    if what == "private":
        return Past("shared" if event.holders else "free", 0, event.holders)
    if what == "free":
        return Past(code, who[0], event.holders)
    if past.holders is None:
        return past
    holders = dict(past.holders)
    if mode == NONE:
        holders.pop(who, None)
    else:
        holders[who] = Held(mode, fence, pid, program)
    return past._replace(holders=holders)


# -- for people ----------------------------------------------------------------------------------------------


def recent(table: Table, key: bytes, upto: int, limit: int) -> dict[str, Any]:
    """The last ``limit`` events of a name up to a position, msgpack-able."""
    events = [event for event in table.history.events(key) if event.row[0] <= upto]
    return {
        "position": table.applied,
        "since": table.history.since,
        "own_since": table.history.own_since,
        "now_us": table.now,
        "events": [plain(event) for event in events[max(0, len(events) - limit) :]],
    }


def past(table: Table, key: bytes, position: int) -> dict[str, Any]:
    """``held_at``, msgpack-able."""
    found = held_at(table, key, position)
    return {
        "position": position,
        "state": found.form,
        "owner": found.owner or None,
        "holders": None if found.holders is None else list(_people(found.holders)),
    }


def plain(event: Event) -> dict[str, Any]:
    """One event, msgpack-able."""
    position, key, what, who, mode, asked, fence, before, before_fence, pid, program, code = event.row
    space, name = split_key(key)
    return {
        "position": position,
        "own": event.own,
        "at_us": event.at,
        "space": space,
        "name": name,
        "what": what,
        "node": who[0],
        "session": who[1],
        "h": who[2],
        "mode": _word(mode),
        "asked": _word(asked),
        "fence": fence,
        "before": _word(before),
        "before_fence": before_fence,
        "pid": pid,
        "program": program,
        "code": code,
        "holders": None if event.holders is None else list(_people(event.holders)),
    }


def _people(holders: Holders) -> Iterator[dict[str, Any]]:
    for (node, session, h), held in sorted(holders.items(), key=itemgetter(0)):
        row = {"node": node, "session": session, "h": h, "mode": NAMES[held.mode], "asked": NAMES[held.mode]}
        yield {**row, "fence": held.fence, "pid": held.pid, "name": held.program}


def _word(mode: int) -> str | None:
    return None if mode == NONE else NAMES[mode]
