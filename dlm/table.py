"""The replicated lock table: a function of the ordered stream (design §5.1, pitfalls K5, K6, K12–K14).

Every member applies the same messages in the same order and so has the same table. Only the *contents* of
private names differ: they exist at the owner alone, who works on them without messages (``local``). What the
table decides comes out as a list of effects: outcomes for the homes of locks, and ``Composed`` publications
for their owner.

Rules worth knowing before reading:

* a message counts only if its life is current and its serial is the next one (K6);
* an unknown name becomes Private to the sender of a new-lock request, and of nothing else (A8);
* a stranger's new-lock request turns Private into Handover; until the owner's Publish is delivered, whatever
  is ordered about the name waits in a list (A4) – the owner composes the Publish at that delivery, not before
  (A3);
* after 8 ordered operations of one node in a row on a shared name that only it uses, that node owns it (A5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgpack

from dlm import checks, failures, multi, spaces, stonith
from dlm.history import History
from dlm.messages import Kind, Message, Op
from dlm.modes import ORPHAN
from dlm.names import FENCE_BLOCK, Fences, Form, Name
from dlm.resource import Effect, Lock, Resource, Step, What
from dlm.waits import Waits, alone, resolve
from vsync.types import NO_RING, Member, RingId

__all__ = ["DEMOTE_AFTER", "Composed", "Effects", "Life", "Look", "Purge", "Table"]

VACANT_KEPT = 1024  #: names without locks that stay shared
DEMOTE_AFTER = 8  #: ordered operations of one node in a row that make a shared name private again


class Composed(NamedTuple):
    """The owner's publication of a name in handover, to be sent by this node."""

    key: bytes
    epoch: int
    contents: tuple[Any, ...]


class Purge(NamedTuple):
    """The orphans of ``node`` (of process ``pid``, 0: all) are to go; that node knows them, and sees to it."""

    node: int
    pid: int


class Look(NamedTuple):
    """A private name of this node that a multi-lock has changed: to be looked after, or given up."""

    key: bytes
    give_up: bool


Effects = list[Effect | Composed | Look | Purge | spaces.Told | spaces.Ask | spaces.Ended | failures.Fate]


class Life:
    """One node as the table knows it: (node, incarnation, admitting ring), and its last applied serial."""

    __slots__ = ("gone", "incarnation", "node", "ring", "serial")

    def __init__(self, node: int, incarnation: int, ring: RingId, serial: int = 0, gone: bool = False) -> None:
        self.node = node
        self.incarnation = incarnation
        self.ring = ring
        self.serial = serial
        self.gone = gone  #: it has said goodbye

    def encode(self) -> tuple[Any, ...]:
        """As a msgpack-able tuple."""
        return self.node, self.incarnation, tuple(self.ring), self.serial, self.gone


class Table:
    """The lock table of node ``me``. Not thread-safe; ``now`` is only remembered for people to read."""

    def __init__(self, me: int) -> None:
        self.me = me
        self.now = 0
        self.ring = NO_RING  #: id of the last primary view: the name of this state (K2)
        self.applied = 0  #: ordered events applied along this lineage: its position (K2)
        self.numbers = 0  #: fence numbers used or reserved in this primary view (K14)
        self.lives: dict[int, Life] = {}
        self.names: dict[bytes, Name] = {}
        self.vacant: dict[bytes, None] = {}  #: shared names without locks, by when the last one went
        self.spaces = spaces.Spaces()
        self.failures = failures.Failures()  #: what others wait for before they get what a failed node had
        self.waits = Waits()  #: who waits for whom in the shared names; follows from those
        self.touched: dict[bytes, None] = {}  #: names that a multi-lock left, perhaps empty; none between events
        self.history = History(self)
        self.marks: dict[int, int] = {}  #: the last marks by position (dlm.checks)
        self.ignored = 0  #: messages of ended lives or with another serial, for status

    # -- the ordered stream ----------------------------------------------------------------------------------

    def apply(self, origin: Member, message: Message) -> Effects | None:
        """Apply one message. ``None`` if it does not count: life not current, or serial not the next."""
        life = self.lives.get(origin.node)
        if (
            life is None
            or life.ring != message.ring
            or life.serial + 1 != message.serial
            or life.incarnation != origin.incarnation
            or life.gone
        ):
            self.ignored += 1
            return None
        life.serial += 1
        self.applied += 1
        out: Effects = []
        kind, body = message.kind, message.body
        if kind <= Kind.CANCEL:
            self.operate(body[0], Op(kind, life.node, life.ring, *body[1:]), out)
        else:
            handler = _HANDLERS.get(kind)
            if handler is not None:
                handler(self, life, body, out)
        self.sweep(out)
        if not self.applied % checks.EVERY:
            checks.mark(self)
        return out

    def operate(self, key: bytes, op: Op, out: Effects) -> None:
        """One operation on one name, by the form the name has at this position (A9)."""
        name = self.names.get(key)
        if name is None:
            if op.kind != Kind.LOCK or op.flags & ORPHAN:
                self._unknown(op, out)
                return
            if self._barred(key, op, out):
                return
            name = self.own(key, op.node)
        elif op.kind == Kind.LOCK and self.spaces.closing and self._barred(key, op, out):
            return
        elif name.form is Form.PRIVATE and name.owner == op.node:
            self.reserve(name)  # so that the owner has a number for whatever this operation grants
        if name.form is Form.SHARED:
            self._operate_shared(key, name, op, out)
        elif name.form is Form.HANDOVER:
            name.waiting.append(op)
        elif name.owner == op.node:
            if name.resource is not None:
                self._run(key, name.resource, op, out)
        elif op.kind == Kind.LOCK and not op.flags & ORPHAN:
            self.hand_over(key, name, out)
            name.waiting.append(op)
        else:
            self._unknown(op, out)  # all locks of a private name are its owner's: a stranger can have none

    def _operate_shared(self, key: bytes, name: Name, op: Op, out: Effects) -> None:
        assert name.resource is not None
        self._run(key, name.resource, op, out)
        self.operated(key, op.node)

    def operated(self, key: bytes, node: int) -> None:
        """After an operation of ``node`` on a shared name: it may be vacant, or become private (A5)."""
        name = self.names[key]
        resource = name.resource
        if name.form is not Form.SHARED or resource is None:
            return
        if not resource.locks:
            self._vacate(key, resource)
            return
        self.vacant.pop(key, None)
        if name.run_node != node:
            name.run_node, name.run = node, 0
        name.run += 1
        if name.run >= DEMOTE_AFTER and resource.sole_home(node):
            self.own(key, node, resource)

    def new_lock(self, op: Op) -> Lock:
        """The lock that a request asks for."""
        key = (op.node, op.session, op.h)
        lock = Lock(key, op.mode, op.flags, op.value, op.pid, op.program, self.now, op.xid, op.owner)
        lock.batch = op.batch
        return lock

    def _run(self, name: bytes, resource: Resource, op: Op, out: Effects) -> None:
        """Carry an operation out. Its home gets exactly one answer to it, now or later."""
        key = (op.node, op.session, op.h)
        effects: list[Effect] = []
        if op.kind == Kind.LOCK:
            lock = self.new_lock(op)
            if op.batch:
                multi.enter(self, [(name, resource, lock)], out)
            else:
                resource.lock(lock, effects)
        elif op.kind == Kind.CONVERT:
            resource.convert(key, op.mode, op.flags, op.value, self.now, effects)
        elif op.kind == Kind.UNLOCK:
            if not resource.unlock(key, op.flags, op.value, effects):
                self._unknown(op, out)
        elif op.kind == Kind.END:
            resource.abandon(key, effects)
        else:
            done = resource.cancel(key, effects, op.flags)
            effects.append(Effect(What.CANCEL_DONE, key, mode=int(done)))
        out.extend(effects)
        if resource.grouped:
            multi.settle(self, name, out)
        if resource.waits is None and resource.queued:
            out.extend(alone(self, resource, key))

    def _barred(self, key: bytes, op: Op, out: Effects) -> bool:
        """Whether there is no lockspace for a new lock on this name, at this position."""
        code = self.spaces.refuses(key)
        if code:
            out.append(Effect(What.REFUSED, (op.node, op.session, op.h), code))
        return bool(code)

    def refuse(self, resource: Resource, lock: Lock, cycle: tuple[Step, ...], out: Effects) -> None:
        """A queued lock is part of a deadlock, and fails: it alone, or with all of its multi-lock (D3)."""
        if lock.batch:
            multi.refuse(self, resource.name, lock, "deadlock", out, cycle)
            return
        effects: list[Effect] = []
        resource.refuse(lock, cycle, effects)
        out.extend(effects)
        if resource.grouped:
            multi.settle(self, resource.name, out)

    def _unknown(self, op: Op, out: Effects) -> None:
        """The answer to an operation on a lock that does not exist (A8); the end of a session wants none."""
        key = (op.node, op.session, op.h)
        if op.kind in (Kind.LOCK, Kind.CONVERT):
            out.append(Effect(What.REFUSED, key, "unknown"))
        elif op.kind == Kind.CANCEL:
            out.append(Effect(What.CANCEL_DONE, key, mode=0))
        elif op.kind == Kind.UNLOCK:
            out.append(Effect(What.GONE, key))

    # -- changes of form -------------------------------------------------------------------------------------

    def own(self, key: bytes, node: int, resource: Resource | None = None) -> Name:
        """The name becomes Private to ``node`` at this position, with a block of fence numbers (K14)."""
        name = self.names[key] = Name(Form.PRIVATE, node, self.applied)
        self.history.form(key, "private", node, resource)
        if resource is not None:
            self.waits.release(resource)
        if node == self.me:
            name.fences = Fences()
            name.resource = resource or Resource(name.fences.take)
            name.resource.mint, name.resource.name = name.fences.take, key
            name.resource.history = self.history
        self.reserve(name)
        return name

    def reserve(self, name: Name) -> None:
        """Set a block of numbers aside for the owner; all members count, the owner keeps the block."""
        first = self.ring.seq << 32 | (self.numbers + 1)
        self.numbers += FENCE_BLOCK
        if name.fences is not None:
            name.fences.add(first, FENCE_BLOCK)

    def mint(self) -> int:
        """The fence number of a grant in a shared name."""
        self.numbers += 1
        return self.ring.seq << 32 | self.numbers

    def hand_over(self, key: bytes, name: Name, out: Effects) -> None:
        """Private -> Handover. The owner composes its publication here and nowhere else (A3)."""
        name.form = Form.HANDOVER
        self.history.form(key, "handover", name.owner, name.resource)
        if name.resource is not None:
            resource, name.resource, name.fences = name.resource, None, None
            out.append(Composed(key, name.epoch, resource.encode()))
            if resource.grouped:
                out.extend(Look(other, give_up=True) for other in multi.follow(self, resource))

    def share(self, key: bytes, name: Name, resource: Resource) -> None:
        """The name becomes Shared with these contents."""
        self.history.form(key, "shared", name.owner, resource)
        name.share(resource)
        self.waits.take(key, resource)
        resource.history = self.history

    def free(self, key: bytes) -> None:
        """The name is no more."""
        self.vacant.pop(key, None)
        self.history.freed(key, self.names.pop(key))

    def _vacate(self, key: bytes, resource: Resource) -> None:
        """The last lock of a shared name has gone, and the value block with it (L10). The name stays shared, else
        two nodes that take turns would hand it over at every turn; of those that stay so the eldest goes.
        """
        resource.value, resource.valid = b"", True
        if key not in self.vacant:
            self.vacant[key] = None
            if len(self.vacant) > VACANT_KEPT:
                self.free(next(iter(self.vacant)))

    def _publish(self, key: bytes, name: Name, resource: Resource, out: Effects) -> None:
        """Handover -> Shared, then what has waited, in order, except operations of ended lives (A4, A7)."""
        waiting, name.waiting = name.waiting, []
        self.share(key, name, resource)
        effects: list[Effect] = []
        resource.scan(effects)
        out.extend(effects)
        multi.settle(self, key, out)
        for op in waiting:
            life = self.lives.get(op.node)
            if life is not None and life.ring == op.ring and not life.gone:
                self._run(key, resource, op, out)
        self.touched[key] = None

    def sweep(self, out: Effects) -> None:
        """At the end of an event: the circles that it has closed, and what multi-locks have left behind in names
        that it was not about.
        """
        if self.waits.touched:
            resolve(self, out)
        touched, self.touched = self.touched, {}
        for key in touched:
            name = self.names.get(key)
            if name is None or name.resource is None:
                continue
            if name.form is Form.PRIVATE:
                out.append(Look(key, give_up=False))
            elif not name.resource.locks:
                self._vacate(key, name.resource)
            else:
                self.vacant.pop(key, None)

    # -- messages that are no operation on a lock ------------------------------------------------------------

    def _on_end(self, life: Life, body: tuple[Any, ...], out: Effects) -> None:
        """A session's locks go, wherever they are; in a handover this waits like everything else (A4)."""
        session, locks = body
        for key, h in locks:
            self.operate(key, Op(Kind.END, life.node, life.ring, session, h, 0, 0, None), out)

    def _on_purge(self, life: Life, body: tuple[Any, ...], out: Effects) -> None:
        out.append(Purge(body[0], body[1]))

    def _on_publish(self, life: Life, body: tuple[Any, ...], out: Effects) -> None:
        key, epoch, contents = body
        name = self.names.get(key)
        if name and name.form is Form.HANDOVER and name.owner == life.node and name.epoch == epoch:
            self._publish(key, name, Resource.decode(contents, self.mint, self.now), out)

    def _on_yield(self, life: Life, body: tuple[Any, ...], out: Effects) -> None:
        key, epoch = body
        name = self._owned(life, key, epoch)
        if name is not None:
            self.hand_over(key, name, out)

    def _on_give_back(self, life: Life, body: tuple[Any, ...], out: Effects) -> None:
        for key, epoch in body[0]:
            if self._owned(life, key, epoch) is not None:
                self.free(key)

    def _on_refill(self, life: Life, body: tuple[Any, ...], out: Effects) -> None:
        name = self._owned(life, *body)
        if name is not None:
            self.reserve(name)

    def _on_goodbye(self, life: Life, body: tuple[Any, ...], out: Effects) -> None:
        """The life ends here, cleanly: nobody has to wait for its leases later (D10)."""
        life.gone = True
        self.end_lives({life.node}, out)

    def _owned(self, life: Life, key: bytes, epoch: int) -> Name | None:
        """The name, if it is private to this life since ``epoch`` (A2, C10)."""
        name = self.names.get(key)
        if name and name.form is Form.PRIVATE and name.owner == life.node and name.epoch == epoch:
            return name
        return None

    # -- views (called by dlm.recovery) ----------------------------------------------------------------------

    def begin_epoch(self, ring: RingId) -> None:
        """A primary view in which this state goes on: a new name, a new position, fence numbers anew."""
        self.ring = ring
        self.applied += 1
        self.numbers = 0

    def end_lives(self, nodes: Iterable[int], out: Effects) -> None:
        """Drop everything of these lives and grant what becomes possible, name by name in sorted order.

        Private names become unknown; a handover whose owner is among them becomes Shared and empty, its value
        block not valid, and then what waited in it is applied (A7). The cost is one look at each name.
        """
        dead = frozenset(nodes)
        affected = [key for key, name in self.names.items() if self._concerns(name, dead)]
        # What has waited in a handover is judged last, when all else is free.
        affected.sort(key=lambda key: (self.names[key].form is Form.HANDOVER, key))
        for key in affected:
            name = self.names[key]
            self.failures.concern(key, name, dead)
            if name.form is Form.PRIVATE:
                self.free(key)
            elif name.form is Form.HANDOVER:
                self._publish(key, name, Resource(self.mint, valid=False), out)
            else:
                assert name.resource is not None
                effects: list[Effect] = []
                name.resource.purge(sorted(dead), effects)
                out.extend(effects)
                multi.settle(self, key, out)
                self.touched[key] = None
        self.failures.purged()
        self.sweep(out)
        spaces.nodes_gone(self, dead, out)

    @staticmethod
    def _concerns(name: Name, dead: frozenset[int]) -> bool:
        if name.form is Form.SHARED:
            return name.resource is not None and not dead.isdisjoint(name.resource.homes)
        return name.owner in dead

    # -- the owner's fast path -------------------------------------------------------------------------------

    def local(self, key: bytes) -> Resource | None:
        """The contents of a name that is private to this node, else ``None``. See K12 before using it."""
        name = self.names.get(key)
        if name is not None and name.form is Form.PRIVATE:
            return name.resource
        return None

    # -- snapshots and checks --------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The replicated state, without private contents; equal bytes for equal states."""
        lives = tuple(self.lives[node].encode() for node in sorted(self.lives))
        names = tuple(self.names[key].encode(key) for key in sorted(self.names))
        more = tuple(self.vacant), self.spaces.encode(), self.failures.encode(), self.history.rolling.value
        packed: bytes = msgpack.packb((1, tuple(self.ring), self.applied, self.numbers, lives, names, *more))
        return packed

    @classmethod
    def decode(cls, me: int, data: bytes, now: int) -> Table:
        """A table from ``encode``'s bytes, for a node that owns no name in it."""
        _, ring, applied, numbers, lives, names, vacant, rows, fails, chain = msgpack.unpackb(data, use_list=False)
        table = cls(me)
        table.now = now
        table.ring, table.applied, table.numbers = RingId(*ring), applied, numbers
        for node, incarnation, admitted, serial, gone in lives:
            table.lives[node] = Life(node, incarnation, RingId(*admitted), serial, gone)
        table.spaces, table.vacant = spaces.Spaces.decode(rows), dict.fromkeys(vacant)
        table.failures = failures.Failures.decode(fails, now)
        for row in names:
            name = table.names[row[0]] = Name.decode(row, table.mint, now)
            if name.resource is not None:
                table.waits.take(row[0], name.resource)
                name.resource.history = table.history
        table.history.began, table.history.rolling = applied, checks.Rolling(chain)
        table.waits.settled()
        return table

    def digest(self) -> str:
        """A short name of the replicated state, equal at all full members at the same position."""
        return hashlib.blake2b(self.encode(), digest_size=8).hexdigest()

    def invariants(self) -> None:
        """Assert what must hold after every event. For tests: it looks at everything."""
        self.waits.invariants(name.resource for name in self.names.values() if name.form is Form.SHARED)
        self.failures.invariants()
        for key, name in self.names.items():
            assert self.spaces.refuses(key) != "no_space", f"{key!r}: in no lockspace"
            if name.form is Form.SHARED:
                assert name.resource is not None, f"{key!r}: shared without contents"
                assert bool(name.resource.locks) != (key in self.vacant), f"{key!r}: wrongly taken for vacant"
                assert not name.waiting, f"{key!r}: shared with a waiting list"
            else:
                mine = name.form is Form.PRIVATE and name.owner == self.me
                assert (name.resource is not None) == mine, f"{key!r}: contents at the wrong node"
                assert name.owner in self.lives, f"{key!r}: owned by an ended life"
            if name.resource is not None:
                name.resource.invariants()
                parts = sum(bool(lock.batch) for lock in name.resource.waiting)
                assert name.resource.grouped == parts, f"{key!r}: parts of multi-locks are miscounted"
                assert not multi.grantable(self, key), f"{key!r}: a multi-lock could be granted"
                for node in name.resource.homes:
                    assert node in self.lives, f"{key!r}: a lock of an ended life"
                    assert name.form is Form.SHARED or node == name.owner, f"{key!r}: private to another"


_HANDLERS: dict[int, Callable[[Table, Life, tuple[Any, ...], Effects], None]] = {
    Kind.END: Table._on_end,
    Kind.PUBLISH: Table._on_publish,
    Kind.YIELD: Table._on_yield,
    Kind.GIVE_BACK: Table._on_give_back,
    Kind.REFILL: Table._on_refill,
    Kind.GOODBYE: Table._on_goodbye,
    Kind.PURGE: Table._on_purge,
    **multi.HANDLERS,
    **spaces.HANDLERS,
    **failures.HANDLERS,
    **stonith.HANDLERS,
}
