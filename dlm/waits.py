"""Deadlocks over all shared names: who waits for whom, kept up to date, and what is done about circles (D2–D8).

An event can close a circle only by beginning a wait, or by leaving a mode with a lock where others wait: it is
granted, or its conversion, for whose end they have waited, has failed. The resources tell of both (``Waits.queue``,
``Waits.stays``), and at the end of the event it is searched from the owners of those locks (``resolve``). All older
circles were broken when they came into being. Most of these owners cannot be in a circle, and for them nothing is
searched (``Waits.exposed``). What edges there are, and how one is found: ``dlm.graph``.

Everything here follows from the replicated table alone: every member finds the same circle at the same position and
refuses the same request (D3, D6), without a message or a timer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dlm.graph import Blocker, blockers, circular, edges, find, through
from dlm.lock import Effect, Key, Lock, State, Step
from dlm.modes import NL
from dlm.resource import Resource

if TYPE_CHECKING:
    from dlm.table import Effects, Table

__all__ = ["Blocker", "Waits", "alone", "alone_all", "blockers", "edges", "find", "resolve", "through"]

MANY = 256  #: with more locks than that an owner is searched without looking at each of them first


class Waits:
    """Who has which locks, and which of them wait: kept up to date by the resources it is given (``take``).

    ``touched`` are the owners for whom a circle may have closed in the event in progress.
    """

    __slots__ = ("entries", "found", "fresh", "queued", "searches", "touched")

    def __init__(self) -> None:
        self.entries: dict[Key, dict[Lock, Resource]] = {}
        self.queued: dict[Key, dict[Lock, Resource]] = {}
        self.touched: dict[Key, None] = {}
        self.fresh: list[Lock] = []  #: locks that have begun to wait in the event in progress
        self.searches = 0  #: for status, like in VMS: how often it was looked for circles ..
        self.found = 0  #: .. and how many there were

    # -- what the resources tell -----------------------------------------------------------------------------

    def take(self, key: bytes, resource: Resource) -> None:
        """The contents of a name have become visible to all; whoever waits there is new to the graph."""
        resource.name, resource.waits = key, self
        for lock in resource.locks.values():
            self.add(lock, resource)
            if lock.state is not State.GRANTED:
                self.queue(lock, resource)

    def release(self, resource: Resource) -> None:
        """The contents of a name are no longer visible to all, or the name is no more."""
        resource.waits = None
        for lock in resource.locks.values():
            self.remove(lock)
            if lock.state is not State.GRANTED:
                self.unqueue(lock)

    def add(self, lock: Lock, resource: Resource) -> None:
        """A lock has appeared."""
        mine = self.entries.get(lock.waiter)
        if mine is None:
            self.entries[lock.waiter] = {lock: resource}
        else:
            mine[lock] = resource

    def remove(self, lock: Lock) -> None:
        """A lock has gone."""
        mine = self.entries[lock.waiter]
        if len(mine) > 1:
            del mine[lock]
        else:
            del self.entries[lock.waiter]

    def queue(self, lock: Lock, resource: Resource) -> None:
        """A lock has begun to wait."""
        mine = self.queued.get(lock.waiter)
        if mine is None:
            self.queued[lock.waiter] = {lock: resource}
        else:
            mine[lock] = resource
        self.touched[lock.waiter] = None
        self.fresh.append(lock)

    def unqueue(self, lock: Lock) -> None:
        """A lock waits no longer."""
        mine = self.queued[lock.waiter]
        if len(mine) > 1:
            del mine[lock]
        else:
            del self.queued[lock.waiter]

    def stays(self, lock: Lock) -> None:
        """A lock holds a mode where others wait, new or, without its conversion, for good: they may wait for its
        owner now, and that one elsewhere for them.
        """
        if lock.waiter in self.queued:
            self.touched[lock.waiter] = None

    def newcomer(self) -> Lock | None:
        """The request that was queued in this event, if nothing else has happened that could close a circle."""
        if not self.fresh:
            return None
        lock = self.fresh[0]
        others = (other for other in self.fresh[1:] if other.waiter != lock.waiter or not other.batch)
        alone = len(self.touched) == 1 and lock in self.queued.get(lock.waiter, ()) and not any(others)
        return lock if alone else None

    def settled(self) -> None:
        """Nothing is in progress: what there is comes from a table in which circles have been looked for."""
        self.touched.clear()
        self.fresh.clear()

    # -- questions -------------------------------------------------------------------------------------------

    def exposed(self, owner: Key) -> bool:
        """Whether the owner waits, and somebody may wait for it: else it is in no circle. Cheap."""
        if owner not in self.queued:
            return False
        mine = self.entries[owner]
        if len(mine) > MANY:
            return True
        for lock, resource in mine.items():
            if lock.state is State.WAITING:
                if resource.waiting[-1] is not lock:
                    return True
            elif lock.state is State.CONVERTING:
                if resource.waiting or len(resource.converting) > 1:
                    return True
            elif (resource.waiting or resource.converting) and lock.mode != NL:
                return True
        return False

    def invariants(self, resources: Iterable[Resource | None]) -> None:
        """Assert that this is what the shared names hold, and that there is no circle. For tests."""
        entries: dict[Key, dict[Lock, Resource]] = {}
        queued: dict[Key, dict[Lock, Resource]] = {}
        for resource in resources:
            assert resource is not None
            assert resource.waits is self, f"{resource.name!r}: nobody keeps account of it"
            for lock in resource.locks.values():
                entries.setdefault(lock.waiter, {})[lock] = resource
                if lock.state is not State.GRANTED:
                    queued.setdefault(lock.waiter, {})[lock] = resource
        assert entries == self.entries, "locks by owner are wrong"
        assert queued == self.queued, "waiting locks by owner are wrong"
        assert not self.touched, "it was not looked for circles at the end of the event"
        assert not circular(self.queued), "a circle is left"


# -- what is done about it -----------------------------------------------------------------------------------


def resolve(table: Table, out: Effects) -> None:
    """At the end of an event: refuse requests until there is no circle any more (D3).

    If all that has happened is that one request was queued, it has closed the circle and is refused, also if it is
    not on it itself but stands in the way of those who are (HEADQUE, conversions). Else it is, on each circle, the
    one whose wait began last.

    Not before: the event may take away with one hand what it gives with the other, such as all the locks of a
    session that has ended, or the releases that have waited for a publication.
    """
    waits = table.waits
    for lock in waits.fresh:
        lock.order = table.applied
    latest = waits.newcomer()
    while roots := [owner for owner in waits.touched if waits.exposed(owner)]:
        waits.searches += 1
        circle = find(waits.queued, roots)
        if not circle:
            break
        waits.found += 1
        if latest is not None:
            circle = through(waits.queued, latest) or [latest, *_turned(circle, latest)]
            latest = None
        _refuse(table, circle, out)  # which may touch others, who are granted something
    waits.settled()


def _turned(circle: list[Lock], lock: Lock) -> list[Lock]:
    """The circle, from another request of the owner of this lock on if there is one."""
    start = next((index for index, other in enumerate(circle) if other.waiter == lock.waiter), 0)
    return circle[start:] + circle[:start]


def _refuse(table: Table, circle: list[Lock], out: Effects) -> None:
    """Refuse the first."""
    waits, victim = table.waits, circle[0]
    table.refuse(waits.queued[victim.waiter][victim], victim, _steps(waits, circle), out)


def _steps(waits: Waits, circle: Iterable[Lock]) -> tuple[Step, ...]:
    return tuple(Step.of(waits.queued[lock.waiter][lock].name, lock) for lock in circle)


def alone(table: Table, resource: Resource, key: Key) -> list[Effect]:
    """This lock may have begun to wait in a private name: if there is a circle within this name alone, break it.

    The owner of the name decides about that as about everything else there. Circles through several names are found
    when those have become shared, which they do when somebody waits in them for long (K13).
    """
    lock = resource.locks.get(key)
    if lock is None or lock.state is State.GRANTED:
        return []
    others = (other for other in resource.locks.values() if other is not lock)
    if lock.state is State.WAITING and not any(other.waiter == lock.waiter for other in others):
        return []
    waits = Waits()
    for other in resource.locks.values():
        waits.add(other, resource)
        if other.state is not State.GRANTED:
            waits.queue(other, resource)
    circle = through(waits.queued, lock)
    out: Effects = []
    if circle:
        table.refuse(resource, circle[0], _steps(waits, circle), out)
    return [effect for effect in out if isinstance(effect, Effect)]


def alone_all(table: Table, resource: Resource) -> list[Effect]:
    """The same for all who wait there: they may wait for an owner for whom they have not waited before."""
    if resource.waits is not None:
        return []
    queued = [lock.key for lock in (*resource.converting, *resource.waiting)]
    return [effect for key in queued for effect in alone(table, resource, key)]
