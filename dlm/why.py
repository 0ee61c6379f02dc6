"""Why a name is not free: who waits, blocked by whom, what those wait for in turn; and what holds answers back.

The edges are those of the search for deadlocks (``dlm.graph.blockers``). A lock that waits is explained once,
however many ways lead to it, so a circle (which the next event would break) ends where it began. What only another
node knows, the contents of its private names, is not followed.

Everything is bounded: an answer is for people, and a queue of thousands has the same reason for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dlm import waiting
from dlm.graph import blockers
from dlm.history import FORMS
from dlm.lock import Key, Lock, State
from dlm.messages import split_key
from dlm.modes import NAMES, NONE
from dlm.names import Form
from dlm.resource import Resource
from dlm.table import Table

if TYPE_CHECKING:
    from dlm.service import DlmService

__all__ = ["MAX_BLOCKERS", "MAX_DEPTH", "MAX_WAITS", "explain"]

MAX_WAITS = 20  #: waiting locks of one name
MAX_BLOCKERS = 10  #: of one of them
MAX_THEN = 5  #: other waits of one who is waited for
MAX_DEPTH = 20
MAX_ROWS = 500  #: in one answer

Row = dict[str, Any]


def explain(service: DlmService, key: bytes) -> Row:
    """The whole answer to ``why``, msgpack-able."""
    table, home = service.table, service.home
    name = None if key in table.vacant else table.find(key)
    space, plain = split_key(key)
    resource = name.resource if name is not None else None
    queue = [] if resource is None else [*resource.converting, *resource.waiting]
    chain = _Chain(table, home.queued_private)
    waits = [chain.wait(lock, resource, 0) for lock in queue[:MAX_WAITS] if resource is not None]
    untold = sum(handle.key == key for handle in home.teller.backlog)
    return {
        "name": plain,
        "space": space,
        "position": table.applied,
        "state": "free" if name is None else FORMS[name.form],
        "owner": (name.owner or None) if name is not None else None,
        "known": name is None or resource is not None,
        "held": [] if resource is None else [chain.party(lock, key) for lock in _holding(resource)[:MAX_BLOCKERS]],
        "waits": waits,
        "others": len(queue) - len(waits),
        "untold": untold,
        "withheld": waiting.records(service, key=key),
    }


class _Chain:
    """One explanation in progress."""

    def __init__(self, table: Table, private: Iterable[bytes]) -> None:
        self._table = table
        self._told: set[tuple[bytes, Key]] = set()
        self._rows = 0
        self._granted = _granted(table)
        self._private: dict[Key, list[tuple[Lock, Resource]]] = {}
        for key in private:
            name = table.names.get(key)
            if name is not None and name.form is Form.PRIVATE and name.resource is not None:
                for lock in (*name.resource.converting, *name.resource.waiting):
                    self._private.setdefault(lock.waiter, []).append((lock, name.resource))

    def wait(self, lock: Lock, resource: Resource, depth: int) -> Row:
        """A lock that waits, and for what."""
        self._rows += 1
        row = {**self.party(lock, resource.name), "waited_us": self._table.now - lock.since, "by": [], "others": 0}
        row["together"] = [split_key(key)[1] for key in lock.batch]
        row["again"] = (resource.name, lock.key) in self._told
        if row["again"] or depth >= MAX_DEPTH or self._rows >= MAX_ROWS:
            return row
        self._told.add((resource.name, lock.key))
        found = list(dict.fromkeys(blocker.lock for blocker in blockers(resource, lock)))
        row["by"] = [self._blocker(other, resource, depth) for other in found[:MAX_BLOCKERS]]
        row["others"] = len(found) - len(row["by"])
        return row

    def _blocker(self, lock: Lock, resource: Resource, depth: int) -> Row:
        """One that it waits for. Who holds something does what its owner does; who is ahead waits as well."""
        row = self.party(lock, resource.name)
        row["how"] = "ahead" if lock.mode == NONE else "holds"
        pending = [(lock, resource)] if lock.state is not State.GRANTED else []
        pending += [each for each in self._queued(lock.waiter) if each[0] is not lock]
        row["then"] = [self.wait(other, where, depth + 1) for other, where in pending[:MAX_THEN]]
        return row

    def _queued(self, owner: Key) -> list[tuple[Lock, Resource]]:
        """All that an owner waits for, as far as this node knows."""
        found = [*self._table.waits.queued.get(owner, {}).items(), *self._private.get(owner, ())]
        return sorted(found, key=lambda each: (each[1].name, each[0].key))

    def party(self, lock: Lock, key: bytes) -> Row:
        """Whose lock it is. ``since_us``: when it was granted what it holds, if that is known."""
        space, name = split_key(key)
        node, session, h = lock.key
        at = self._granted.get((key, lock.key)) if lock.mode != NONE else None
        return {
            "name": name,
            "space": space,
            "node": node,
            "session": session,
            "h": h,
            "pid": lock.pid,
            "program": lock.program,
            "xid": lock.whose.xid,
            "mode": None if lock.mode == NONE else NAMES[lock.mode],
            "asked": None if lock.state is State.GRANTED else NAMES[lock.asked],
            "fence": lock.fence,
            "held_us": None if at is None else self._table.now - at,
            "orphan": lock.orphan,
        }


def _holding(resource: Resource) -> list[Lock]:
    return [lock for _, lock in sorted(resource.locks.items()) if lock.mode != NONE]


def _granted(table: Table) -> dict[tuple[bytes, Key], int]:
    """When each lock was given the mode it holds, as far as the history goes. Local clock."""
    history = table.history
    return {
        (row[1], row[3]): at
        for ring in (history.shared, history.own)
        for row, at, *_ in ring
        if row[2] in ("granted", "converted")
    }
