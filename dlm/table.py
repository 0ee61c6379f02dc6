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

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dlm import checks, failures, folded, multi, purge, snapshot, sound, spaces, stonith, words, work
from dlm.effects import Composed, Effects, Look, Purge
from dlm.history import History
from dlm.life import Life
from dlm.messages import Kind, Message, Op
from dlm.modes import ORPHAN
from dlm.names import FENCE_BLOCK, Fences, Form, Name
from dlm.resource import Effect, Lock, Resource, Step, What
from dlm.waits import Waits, alone, resolve
from vsync.types import NO_RING, Member, RingId

__all__ = ["DEMOTE_AFTER", "Composed", "Effects", "Life", "Look", "Purge", "Table"]

VACANT_KEPT = 1024  #: names without locks that stay shared
DEMOTE_AFTER = 8  #: ordered operations of one node in a row that make a shared name private again


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
        self.handovers: dict[bytes, None] = {}  #: names in handover
        self.lately = folded.Lately(self)  #: names private to this node, whose contents stand open
        self.forms = [0, 0, 0]  #: how many names have each form; for people: not all may be up to date
        self.era = 0  #: the last event about all names ..
        self.dues: list[purge.Due] = []  #: .. and those that are not carried out on every name yet (``dlm.purge``)
        self._walk: Iterator[int] = iter(())  #: through all names, to carry them out ..
        self._walked = 0  #: .. up to this one
        self.spaces = spaces.Spaces()
        self.failures = failures.Failures()  #: what others wait for before they get what a failed node had
        self.waits = Waits()  #: who waits for whom in the shared names; follows from those
        self.touched: dict[bytes, None] = {}  #: names that a multi-lock left, perhaps empty; none between events
        self.history = History(self)
        self.mint, self.more = self._mint, self._more  #: one of each for all names
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
        if kind <= Kind.CANCEL or kind == Kind.IN_USE:
            self.operate(body[0], Op(kind, life.node, life.ring, *body[1:]), out)
        else:
            handler = _HANDLERS.get(kind)
            if handler is not None:
                handler(self, life, body, out)
        self.sweep(out)
        if self.lately.many:
            self.lately.fold()
        if not self.applied % checks.EVERY:
            checks.mark(self)
        return out

    def operate(self, key: bytes, op: Op, out: Effects) -> None:
        """One operation on one name, by the form the name has at this position (A9)."""
        name = self.find(key)
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
            name.wait(op)
        elif name.owner == op.node:
            if name.resource is not None:
                self._run(key, name.resource, op, out)
        elif op.kind == Kind.LOCK and not op.flags & ORPHAN:
            self.hand_over(key, name, out)
            name.wait(op)
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
        if resource.run_node != node:
            resource.run_node, resource.run = node, 0
        resource.run += 1
        if resource.run >= DEMOTE_AFTER and resource.sole_home(node):
            self.own(key, node, resource)

    def _run(self, name: bytes, resource: Resource, op: Op, out: Effects) -> None:
        """Carry an operation out. Its home gets exactly one answer to it, now or later."""
        key = (op.node, op.session, op.h)
        effects: list[Effect] = []
        if op.kind == Kind.LOCK:
            lock = Lock.asked_for(op, self.now)
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
        elif op.kind == Kind.IN_USE:
            effects += words.taken(self, resource, key)
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
        self.find(resource.name)
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

    # -- names -----------------------------------------------------------------------------------------------

    def find(self, key: bytes) -> Name | None:
        """The name as it is at this position. All who read or change a name that is not this node's own get it
        here: ``names`` has also some that ought to be otherwise by now (``dlm.purge``).
        """
        name = self.names.get(key)
        if name is None:
            return None
        if name.folded is not None:
            folded.unfold(self, key, name)
        return name if name.era == self.era else self.bring(key, name)

    def bring(self, key: bytes, name: Name, era: int = -1) -> Name | None:
        """Carry out on one name what is due, up to this era or all of it; ``None`` if it is no more."""
        upto = self.era if era < 0 else era
        for due in self.dues:
            if name.era < due.era <= upto:
                name.era = due.era
                if not due.settle(self, key, name):
                    return None
        name.era = max(name.era, upto)
        return name

    def add(self, key: bytes, form: Form, owner: int) -> Name:
        """A new name, or a new form of one: nothing is left of what it was."""
        old = self.names.get(key)
        if old is not None:
            self.forms[old.form] -= 1
        else:
            self.spaces.count(key, 1)
        self.forms[form] += 1
        name = self.names[key] = Name(form, owner, self.applied, self.era)
        return name

    def forget(self, key: bytes) -> Name:
        """A name is no more; whoever calls this tells the history."""
        name = self.names.pop(key)
        if name.folded is not None:
            folded.unfold(self, key, name)
        self.forms[name.form] -= 1
        self.spaces.count(key, -1)
        self.vacant.pop(key, None)
        self.handovers.pop(key, None)
        return name

    # -- changes of form -------------------------------------------------------------------------------------

    def own(self, key: bytes, node: int, resource: Resource | None = None) -> Name:
        """The name becomes Private to ``node`` at this position, with a block of fence numbers (K14)."""
        name = self.add(key, Form.PRIVATE, node)
        self.history.form(key, "private", node, resource)
        if resource is not None:
            self.waits.release(resource)
        if node == self.me:
            name.fences = Fences()
            name.resource = resource or Resource(name.fences.take)
            name.resource.mint, name.resource.more, name.resource.name = name.fences.take, name.fences.more, key
            name.resource.history = self.history
        self.reserve(name)
        return name

    def reserve(self, name: Name) -> None:
        """Set a block of numbers aside for the owner; all members count, the owner keeps the block."""
        first = self.ring.seq << 32 | (self.numbers + 1)
        self.numbers += FENCE_BLOCK
        if name.fences is not None:
            name.fences.add(first, FENCE_BLOCK)

    def _mint(self) -> int:
        """The fence number of a grant in a shared name."""
        self.numbers += 1
        return self.ring.seq << 32 | self.numbers

    def _more(self, count: int) -> int:
        """So many numbers behind the last one: for the same grant, and for nobody else."""
        self.numbers += count
        return count

    def hand_over(self, key: bytes, name: Name, out: Effects) -> None:
        """Private -> Handover. The owner composes its publication here and nowhere else (A3)."""
        name.form = Form.HANDOVER
        self.forms[Form.PRIVATE] -= 1
        self.forms[Form.HANDOVER] += 1
        self.handovers[key] = None
        self.history.form(key, "handover", name.owner, name.resource)
        if name.resource is not None:
            resource, name.resource, name.fences = name.resource, None, None
            out.append(Composed(key, name.epoch, resource.encode()))
            if resource.grouped:
                out.extend(Look(other, give_up=True) for other in multi.follow(self, resource))

    def share(self, key: bytes, name: Name, resource: Resource) -> None:
        """The name becomes Shared with these contents."""
        self.history.form(key, "shared", name.owner, resource)
        self.forms[name.form] -= 1
        self.forms[Form.SHARED] += 1
        self.handovers.pop(key, None)
        name.share(resource)
        resource.more = self.more
        self.waits.take(key, resource)
        resource.history = self.history

    def free(self, key: bytes) -> None:
        """The name is no more."""
        self.history.freed(key, self.forget(key))

    def _vacate(self, key: bytes, resource: Resource) -> None:
        """The last lock of a shared name has gone, and the value block with it (L10). The name stays shared, else
        two nodes that take turns would hand it over at every turn; of those that stay so the eldest goes.
        """
        resource.value, resource.valid = b"", True
        if key not in self.vacant:
            self.vacant[key] = None
            if len(self.vacant) > VACANT_KEPT and self.find(eldest := next(iter(self.vacant))) is not None:
                self.free(eldest)

    def publish(self, key: bytes, name: Name, resource: Resource, out: Effects) -> None:
        """Handover -> Shared, then what has waited, in order, except operations of ended lives (A4, A7)."""
        waiting, name.waiting = name.waiting, ()
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
            name = self.find(key)
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
        name = self.find(key)
        if name and name.form is Form.HANDOVER and name.owner == life.node and name.epoch == epoch:
            self.publish(key, name, Resource.decode(contents, self.mint, self.now), out)

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
        self.end_lives([life], out)

    def _owned(self, life: Life, key: bytes, epoch: int) -> Name | None:
        """The name, if it is private to this life since ``epoch`` (A2, C10)."""
        name = self.find(key)
        if name and name.form is Form.PRIVATE and name.owner == life.node and name.epoch == epoch:
            return name
        return None

    # -- views (called by dlm.recovery) ----------------------------------------------------------------------

    def begin_epoch(self, ring: RingId) -> None:
        """A primary view in which this state goes on: a new name, a new position, fence numbers anew."""
        self.ring = ring
        self.applied += 1
        self.numbers = 0

    def end_lives(self, lives: Iterable[Life], out: Effects) -> None:
        """These lives have ended at this position: what was theirs goes, and others get it (``dlm.purge``)."""
        lives = list(lives)
        purge.end_lives(self, lives, out)
        spaces.nodes_gone(self, [life.node for life in lives], out)

    def tidy(self, units: int) -> int:
        """Carry out some of what is due on names that nobody has looked at. Returns what is left of the ``units``
        (``dlm.work``).
        """
        if self._walked != self.overdue:
            self._walk, self._walked = purge.walk(self, self.overdue), self.overdue
        return work.spend(self._walk, units)[0]

    @property
    def overdue(self) -> int:
        """The era up to which all names are to be brought when there is time; 0 if they need not.

        What comes behind a copy that is being made is not: the copy would have to write down all names for that.
        """
        era = 0
        for due in self.dues:
            if due.holds:
                break
            era = due.era
        return era

    @property
    def purging(self) -> bool:
        """Whether there may be names that concern a failure and have not been looked at."""
        return any(isinstance(due, purge.LivesEnded) and due.ending for due in self.dues)

    def complete(self) -> None:
        """Carry out all that is due, now. It makes no difference but for time and memory."""
        while self.overdue:
            self.tidy(1 << 62)

    # -- the owner's fast path -------------------------------------------------------------------------------

    def local(self, key: bytes) -> Resource | None:
        """The contents of a name that is private to this node, else ``None``. See K12 before using it."""
        name = self.names.get(key)
        if name is None or name.form is not Form.PRIVATE:
            return None
        if name.folded is not None:
            folded.unfold(self, key, name)
        return name.resource

    # -- snapshots and checks --------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The replicated state, without private contents; equal bytes for equal states."""
        return snapshot.encode(self)

    @classmethod
    def decode(cls, me: int, data: bytes, now: int) -> Table:
        """A table from ``encode``'s bytes, for a node that owns no name in it."""
        return snapshot.decode(cls(me), data, now)

    def digest(self) -> str:
        """A short name of the replicated state, equal at all full members at the same position."""
        return snapshot.digest(self)

    def invariants(self) -> None:
        """Assert what must hold after every event. For tests: it looks at everything."""
        sound.check(self)


_HANDLERS: dict[int, Callable[[Table, Life, tuple[Any, ...], Effects], None]] = {
    Kind.END: Table._on_end,
    Kind.PUBLISH: Table._on_publish,
    Kind.YIELD: Table._on_yield,
    Kind.GIVE_BACK: Table._on_give_back,
    Kind.REFILL: Table._on_refill,
    Kind.GOODBYE: Table._on_goodbye,
    Kind.PURGE: Table._on_purge,
    Kind.LOOK: checks.on_look,
    **multi.HANDLERS,
    **spaces.HANDLERS,
    **failures.HANDLERS,
    **stonith.HANDLERS,
}
