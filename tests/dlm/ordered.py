"""A stream of ordered events for tables without services: lives, serials, publications, views; and random ones.

A *replica* here is a table of one of the nodes. Who uses this applies each event to replicas of every node, and
says what came out where (``note``), so that publications and answers follow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from dlm.messages import TAG, Kind, Message, key_of
from dlm.modes import HEADQUE, NOORDER, NOQUEUE, NOTIFY, PERSISTENT, VALBLK
from dlm.options import FENCING, PLAIN, RECOVERY, Options
from dlm.recovery import Announcement, primary_view
from dlm.spaces import CREATE, Ask
from dlm.table import Composed, Effects, Life, Table
from vsync.types import Entry, Member, RingId, View

NODES = (1, 2, 3)
FLAGS = (0, 0, 0, VALBLK, VALBLK, NOQUEUE, NOTIFY, PERSISTENT, NOORDER, HEADQUE)

Event = tuple[Member, Message] | View


class Order:
    """What is ordered next, and what the nodes have to say when something has been delivered."""

    def __init__(
        self, rng: random.Random, keys: Iterable[bytes], spaces: Iterable[str] = (), options: Options = PLAIN
    ) -> None:
        self.options = options  #: of the default lockspace, and sometimes of others
        self.rng = rng
        self.keys = list(keys)
        self.spaces = list(spaces)
        self.seq = 1
        self.lives = dict.fromkeys(NODES, 1)
        self.rings = dict.fromkeys(NODES, RingId(1, 1))
        self.serials = dict.fromkeys(NODES, 0)
        self.h = 0
        self.locks: list[tuple[int, int, tuple[tuple[bytes, int], ...]]] = []  #: (node, session, ((key, h), ..))
        self.due: list[tuple[int, int, Kind, tuple[Any, ...]]] = []  #: (node, its life, message)
        self.leaving: list[int] = []

    def first(self, me: int) -> Table:
        """A table at the first view."""
        table = Table(me)
        table.begin_epoch(RingId(self.seq, 1))
        table.lives = {node: Life(node, 1, RingId(self.seq, 1)) for node in NODES}
        table.spaces.set_options(table.spaces.by_name["default"], self.options)
        return table

    def message(self, node: int, kind: Kind, body: tuple[Any, ...]) -> tuple[Member, Message]:
        """The next one of this node."""
        self.serials[node] += 1
        return Member(node, self.lives[node]), Message(kind, self.rings[node], self.serials[node], body)

    def view(self, dead: Iterable[int]) -> View:
        """These nodes die, and are back in the next view as other lives."""
        old, self.seq = self.seq, self.seq + 4
        ring = RingId(self.seq, 1)
        going_on = {node: self.rings[node] for node in NODES if node not in dead}
        for node in dead:
            self.lives[node] += 1
            self.serials[node] = 0
            self.rings[node] = ring
        self.locks = [lock for lock in self.locks if lock[0] in going_on]
        self.due = [due for due in self.due if due[0] in going_on]
        members = tuple(Member(node, self.lives[node]) for node in NODES)
        said = {node: Announcement(RingId(old, 1), 0, True, life).encode() for node, life in going_on.items()}
        said |= {node: Announcement().encode() for node in dead}
        entries = {member.node: Entry(member, RingId(old, 1), 1, {TAG: said[member.node]}) for member in members}
        return View(ring, members, (), (), True, False, "test", entries, RingId(old, 1))

    def note(self, node: int, effects: Effects, busy: Callable[[str], bool]) -> None:
        """What came out at this node."""
        for effect in effects:
            if isinstance(effect, Composed):
                self.due.append((node, self.lives[node], Kind.PUBLISH, tuple(effect)))
            elif isinstance(effect, Ask) and node in effect.nodes:
                body = effect.space, effect.position, busy(effect.space)
                self.due.append((node, self.lives[node], Kind.SPACE_ANSWER, body))

    # -- random events

    def next(self, table: Table) -> Event:
        """A random one; ``table`` is up to date."""
        rng = self.rng
        if self.due and rng.random() < 0.4:
            node, _, kind, body = self.due.pop(0)
            return self.message(node, kind, body)
        choice = rng.random()
        if choice < 0.06:
            dead = set(self.leaving) | set(rng.sample(NODES, rng.choice((0, 1, 1, 1, 2))))
            self.leaving = []
            return self.view(sorted(dead)[:2])
        if choice < 0.08 and not self.leaving:
            self.leaving = [rng.choice(NODES)]
            return self.message(self.leaving[0], Kind.GOODBYE, ())
        if choice < 0.13 and self.spaces:
            return self._space()
        if choice < 0.18:
            return self._form(table)
        if choice < 0.22 and table.failures:
            failure = rng.choice(table.failures.every)
            body = failure.node, failure.incarnation, failure.space, rng.choice((FENCING, RECOVERY)), "me"
            return self.message(rng.choice(NODES), Kind.CLEARED, body)
        if choice < 0.6 and len(self.locks) < 12:
            return self._lock()
        return self._other() if self.locks else self._lock()

    def _lock(self) -> Event:
        rng = self.rng
        node, session = rng.choice(NODES), rng.randint(1, 2)
        self.h += 3
        whose = 7, "p", rng.choice((0, 0, 0, 5)), rng.choice((0, self.h))
        if rng.random() < 0.2:
            first = rng.choice(self.keys)
            alike = [key for key in self.keys if key[: key.index(0)] == first[: first.index(0)]]
            asked = tuple((key, rng.randrange(6), 0) for key in sorted(rng.sample(alike, min(2, len(alike)))))
            self.locks.append((node, session, tuple((key, self.h + i) for i, (key, *_) in enumerate(asked))))
            return self.message(node, Kind.LOCK_ALL, (session, self.h, asked, *whose))
        key, mode = rng.choice(self.keys), rng.choice((0, 1, 2, 3, 4, 5, 5, 5))
        self.locks.append((node, session, ((key, self.h),)))
        return self.message(node, Kind.LOCK, (key, session, self.h, mode, rng.choice(FLAGS), None, *whose))

    def _other(self) -> Event:
        rng = self.rng
        node, session, held = which = rng.choice(self.locks)
        choice = rng.random()
        if len(held) == 1 and choice < 0.3:
            key, h = held[0]
            body = key, session, h, rng.randrange(6), rng.choice(FLAGS[:8]), b"%d" % h
            return self.message(node, Kind.CONVERT, body)
        if choice < 0.4:
            return self.message(node, Kind.CANCEL_ALL, (session, 0, held))
        self.locks.remove(which)
        if choice < 0.6:
            return self.message(node, Kind.END, (session, held))
        return self.message(node, Kind.UNLOCK_ALL, (session, tuple((key, h, VALBLK, b"x") for key, h in held)))

    def _form(self, table: Table) -> Event:
        key = self.rng.choice(self.keys)
        name = table.find(key)
        if name is None or not name.owner or name.owner in self.leaving:
            return self._lock()
        if self.rng.random() < 0.5:
            return self.message(name.owner, Kind.YIELD, (key, name.epoch))
        return self.message(name.owner, Kind.REFILL, (key, name.epoch))

    def _space(self) -> Event:
        rng = self.rng
        node, name = rng.choice(NODES), rng.choice(self.spaces)
        if rng.random() < 0.5:
            return self.message(node, Kind.SPACE_CREATE, (name, 1, 1, CREATE, 0, 0, 0o666, 32, self.options))
        return self.message(node, Kind.SPACE_RELEASE, (name, 1, 1, rng.choice((0, 2))))


def keys_in(space: str, *names: bytes) -> list[bytes]:
    """Keys of names in a lockspace."""
    return [key_of(space, name) for name in names]


def apply(table: Table, event: Event, going_on: frozenset[int]) -> Effects | None:
    """Apply an event; ``None`` if it did not count."""
    if isinstance(event, View):
        return primary_view(table, event, going_on, (), ()).effects
    return table.apply(*event)


def going_on(event: Event, before: dict[int, int], order: Order) -> frozenset[int]:
    """The nodes whose lives are the same as before the event."""
    return frozenset(node for node in NODES if before[node] == order.lives[node])
