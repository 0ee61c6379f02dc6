"""One lockable name: its locks, its convert and wait queues, its value block (locks.md §1.3–§1.10).

Everything that decides who gets what stands here, and nothing else does: no nodes that die, no messages, no
time. A resource answers each operation by appending *effects* to a list, in the order of GRANT-Q13: the
outcome of the acting lock first, then grants of others in queue order, then whom the holders block.

Granted locks have no order among them (S2); the convert and wait queues are first in, first out, except
HEADQUE. A converting lock *still holds* its granted mode (S1), so the modes held are counted over both kinds.
Where the kernel tells holders in the order of its grant queue, they are told in the order of their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dlm import blocking, contents, homes, tries, upgrade
from dlm.counts import BARS, UNITS, highest
from dlm.history import SILENT, History, Late, Silent
from dlm.lock import Effect, Key, Lock, State, Step, What
from dlm.modes import (
    ALTERNATIVES,
    ALTMODE,
    CACHE,
    EXPEDITE,
    HEADQUE,
    IVVALBLK,
    NL,
    NONE,
    NOORDER,
    NOQUEUE,
    NOTIFY,
    ORPHAN,
    PERSISTENT,
    PW,
    QUECVT,
    READS,
    TIMEOUT,
    VALBLK,
    VALNOTVALID,
    WRITES,
    fences_of,
    is_down,
    value_direction,
)  # fmt: skip

if TYPE_CHECKING:
    from dlm.waits import Waits

__all__ = ["Effect", "Key", "Lock", "Mint", "Resource", "State", "Step", "What"]

Mint = Callable[[], int]  #: gives the next fence number
_STATES = tuple(State)  # to go through the class itself takes its time


class Resource:
    """The locks of one name. ``mint`` gives fence numbers; the owner of the resource may replace it.

    There may be a million of them, most with one lock: what such a name does not need is shared by all.
    """

    __slots__ = (
        "converting", "grouped", "held", "history", "homes", "listeners", "locks", "loose", "mint", "more", "name",
        "run", "run_node", "tries", "valid", "value", "waiting", "waits",
    )  # fmt: skip

    def __init__(self, mint: Mint, value: bytes = b"", valid: bool = True) -> None:
        self.mint = mint
        self.more: Callable[[int], int] = _no_more  #: so many more numbers behind the last one, if there are any
        self.locks: dict[Key, Lock] = {}
        self.converting: Sequence[Lock] = ()  #: a list if there is anybody in it
        self.waiting: Sequence[Lock] = ()  #: the same
        self.held = 0  #: how many locks hold each mode (granted and converting), see ``dlm.counts``
        self.homes = homes.NOBODY  #: how many locks (in any state) each node has here
        self.listeners = blocking.NOBODY  #: locks that want to hear whom they block
        self.loose = 0  #: how many queued ones may overtake (NOORDER)
        self.tries = 0  #: how many queued ones are only tried (NOQUEUE, ``dlm.tries``)
        self.grouped = 0  #: how many queued ones are parts of multi-locks: ``dlm.multi`` grants them
        self.value, self.valid = value, valid
        self.run_node = 0  #: shared: the node of the last ordered operation ..
        self.run = 0  #: .. and how many in a row were that node's (A5)
        self.name = b""  #: its key, for the circles it is part of
        self.waits: Waits | None = None  #: who waits for whom, while all members know the contents
        self.history: History | Late | Silent = SILENT

    # -- operations ------------------------------------------------------------------------------------------

    def lock(self, lock: Lock, out: list[Effect]) -> None:
        """A new request (Q1, Q2, Q3, Q7, Q9, Q11)."""
        if lock.key in self.locks:
            out.append(Effect(What.REFUSED, lock.key, "exists"))
            return
        if lock.flags & ORPHAN:
            self._adopt(lock, out)
            return
        mode = self._grantable(lock)
        # Who would stand first in the queue can be granted now as well as at the next event (HEADQUE).
        idle = not self.converting and (not self.waiting or lock.flags & HEADQUE)
        expedited = lock.flags & EXPEDITE and lock.asked == NL
        if mode != NONE and (idle or expedited or lock.flags & NOORDER):
            self._add(lock)
            self._grant(lock, mode, out)  # a holder more can block others, but is told at the next event (G16)
        elif lock.flags & NOQUEUE and not tries.hopeful(self, lock):
            out.append(Effect(What.REFUSED, lock.key, "again"))
            self.history.asked(self, lock, "refused", "again")
            blocking.refused(self, lock, out)
        else:
            self._add(lock)
            self._enqueue(lock, State.WAITING)
            blocking.queued(self, lock, out)

    def convert(self, key: Key, asked: int, flags: int, value: bytes | None, now: int, out: list[Effect]) -> None:
        """A granted lock wants another mode (Q2, Q3, Q5, Q6, Q7, Q11; M3)."""
        lock = self.locks.get(key)
        if lock is None or lock.state is not State.GRANTED:
            out.append(Effect(What.REFUSED, key, "unknown" if lock is None else "busy"))
            return
        before = lock.asked, lock.flags, lock.value
        lock.asked, lock.flags, lock.value, lock.result = asked, flags, value, 0
        blocking.listen(self, lock, bool(flags & NOTIFY))
        lock.persistent = lock.persistent or bool(flags & PERSISTENT)
        in_place = not flags & QUECVT or flags & (NOORDER | HEADQUE) or not self.converting
        mode = self._grantable(lock) if in_place else NONE
        if mode != NONE:
            self._grant(lock, mode, out)
            self.scan(out)
            return
        rival = None if flags & NOQUEUE else upgrade.rival(lock, self.converting)
        if (flags & NOQUEUE and not tries.hopeful(self, lock)) or (rival is not None and not self._demote(lock)):
            cycle = () if rival is None else (Step.of(self.name, lock), Step.of(self.name, rival))
            out.append(Effect(What.REFUSED, key, code := "deadlock" if cycle else "again", cycle=cycle))
            self.history.asked(self, lock, "refused", code)
            if flags & NOQUEUE:
                blocking.refused(self, lock, out)
            lock.asked, lock.flags, lock.value = before
            return
        lock.since = now
        self._enqueue(lock, State.CONVERTING)
        if rival is not None:
            self.scan(out)  # somebody holds less than before
        else:
            blocking.queued(self, lock, out)

    def cancel(self, key: Key, out: list[Effect], flags: int = 0) -> bool:
        """Withdraw what is queued (U1, U2, U6), with TIMEOUT because its time is over. False if the grant came
        first (U3): then nothing happens.
        """
        lock = self.locks.get(key)
        if lock is None or lock.state is State.GRANTED:
            return False
        code = "timeout" if flags & TIMEOUT else ""
        self.history.asked(self, lock, "cancelled", code)
        self._withdraw(lock)
        out.append(Effect(What.CANCELED, key, code, lock.mode, flags=lock.result))
        self.scan(out)
        return True

    def refuse(self, lock: Lock, cycle: tuple[Step, ...], out: list[Effect]) -> None:
        """Withdraw what is queued since nothing would ever come of it (D3); the old mode, if any, stays (D8)."""
        self.deny(lock, "deadlock", out, cycle)
        self.scan(out)

    def deny(self, lock: Lock, code: str, out: list[Effect], cycle: tuple[Step, ...] = ()) -> None:
        """The same; what follows from it is left to the caller."""
        self.history.asked(self, lock, "refused", code)
        self._withdraw(lock)
        out.append(Effect(What.REFUSED, lock.key, code, lock.mode, flags=lock.result, cycle=cycle))

    def unlock(self, key: Key, flags: int, value: bytes | None, out: list[Effect], why: str = "") -> bool:
        """End a lock in whatever state it is (U4, U5). False if there is none. ``why`` is for the history."""
        lock = self.locks.get(key)
        if lock is None:
            return False
        self._write_at_end(lock, flags, value)
        self.history.ended(self, lock, "released", why)
        self._remove(lock)
        out.append(Effect(What.GONE, key))
        self.scan(out)
        return True

    def abandon(self, key: Key, out: list[Effect]) -> None:
        """The session of a lock has gone (P1): the lock goes too, or, if it is PERSISTENT and holds something,
        becomes an orphan, whose operation in progress is withdrawn.
        """
        lock = self.locks.get(key)
        if lock is None:
            return
        if not lock.persistent or lock.state is State.WAITING:
            why = "session ended"
            self.unlock(key, IVVALBLK, None, out, why)  # its PW or EX leaves the value block not valid (L7)
            return
        if lock.state is State.CONVERTING:
            self._back(lock)
        lock.orphan = True
        self.history.asked(self, lock, "orphaned")
        blocking.listen(self, lock, False)
        self.scan(out)

    def _adopt(self, lock: Lock, out: list[Effect]) -> None:
        """A session takes over an orphan of its node in just this mode (P3), with a new fence number."""
        orphans = sorted(key for key, other in self.locks.items() if other.orphan and key[0] == lock.key[0])
        was = next((key for key in orphans if self.locks[key].mode == lock.asked), None)
        if was is None:
            out.append(Effect(What.REFUSED, lock.key, "again" if orphans else "unknown"))
            return
        if self.waits is not None:
            self.waits.remove(self.locks[was])
            self.waits.add(lock, self)
        self.history.ended(self, self.locks.pop(was), "released", "adopted")
        self.locks[lock.key] = lock
        self.held -= UNITS[lock.asked]  # the orphan's; the grant counts the lock again
        lock.persistent = True  # sticks to the lock
        blocking.listen(self, lock, lock.notify)
        self._grant(lock, lock.asked, out)
        out[-1] = out[-1]._replace(was=was)
        blocking.remaining(self, out)

    def purge(self, nodes: Iterable[int], out: list[Effect]) -> None:
        """Drop every lock of nodes that have ended; a lost PW or EX leaves the value block not valid (L7)."""
        dead = [node for node in nodes if node in self.homes]
        if not dead:
            return
        for lock in [self.locks[key] for key in sorted(self.locks) if key[0] in dead]:
            self._write_at_end(lock, IVVALBLK, None)
            self.history.ended(self, lock, "lost", "node left")
            self._remove(lock)
        self.scan(out)

    def scan(self, out: list[Effect]) -> None:
        """Grant what has become possible: converters first, then waiters, in order (Q7, Q8, Q10, Q12).

        Then tell the holders whom they still block (B3).
        """
        while (found := self._next()) is not None or (self.tries and tries.judge(self, out)):
            if found is not None:
                self._dequeue(found[0])
                self._grant(*found, out)
        blocking.remaining(self, out)

    # -- parts of multi-locks (dlm.multi) ---------------------------------------------------------------------

    def enter(self, lock: Lock) -> None:
        """Queue a part of a multi-lock."""
        self._add(lock)
        self._enqueue(lock, State.WAITING)

    def turn(self, lock: Lock) -> bool:
        """Whether the part, queued or new, would be granted now if it were alone (Q9, Q10)."""
        first = not self.waiting or self.waiting[0] is lock
        return first and not self.converting and self._fits(lock, lock.asked)

    def admit(self, lock: Lock, out: list[Effect]) -> None:
        """Grant a part. What follows in the queue is not looked at before the other parts are granted as well."""
        if lock.key in self.locks:
            self._dequeue(lock)
        else:
            self._add(lock)
        lock.batch = ()
        self._grant(lock, lock.asked, out)

    def advise(self, lock: Lock, out: list[Effect]) -> None:
        """The part stays in the queue: the holders in its way are told (B1)."""
        blocking.queued(self, lock, out)

    def drop(self, lock: Lock, code: str, out: list[Effect]) -> None:
        """A part leaves, without a word to its session; others go on (U6)."""
        self.history.asked(self, lock, "refused", code)
        self._remove(lock)
        self.scan(out)

    # -- questions -------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """How many operations wait here; at most so many grants can come of one event."""
        return len(self.converting) + len(self.waiting)

    def sole_home(self, node: int) -> bool:
        """Whether every lock is this node's and nobody waits (pitfalls A5)."""
        return not self.converting and not self.waiting and len(self.homes) == 1 and node in self.homes

    def oldest_wait(self) -> int | None:
        """Local clock at which the longest waiting operation was queued, or ``None``."""
        heads = [queue[0].since for queue in (self.converting, self.waiting) if queue]
        return min(heads) if heads else None

    def top_mode(self) -> int:
        """The highest mode held, NONE if nothing is."""
        return highest(self.held)

    # -- the parts -------------------------------------------------------------------------------------------

    def _fits(self, lock: Lock, asked: int) -> bool:
        """Whether no *other* lock holds a mode that conflicts with ``asked`` (Q2, Q3)."""
        return not (self.held - UNITS[lock.mode]) & BARS[asked]

    def _grantable(self, lock: Lock) -> int:
        """The mode it could be given now: the one asked for, or one that it takes instead, else NONE."""
        if self._fits(lock, lock.asked):
            return lock.asked
        for flag, mode in ALTERNATIVES:
            if lock.flags & flag and mode != lock.asked and self._fits(lock, mode):
                return mode
        return NONE

    def _next(self) -> tuple[Lock, int] | None:
        """The next one to be granted from the queues, and its mode: the first in line, or one that may overtake."""
        for queue, served in ((self.converting, True), (self.waiting, not self.converting)):
            alone = queue and served and not queue[0].batch  # a part of a multi-lock waits for the others
            if alone and (mode := self._grantable(queue[0])) != NONE:
                return queue[0], mode
            for lock in queue if self.loose else ():
                if lock.flags & NOORDER and (mode := self._grantable(lock)) != NONE:
                    return lock, mode
        return None

    def _enqueue(self, lock: Lock, state: State) -> None:
        lock.state = state
        queue = self._line(state)
        self.grouped += bool(lock.batch)
        self.loose += bool(lock.flags & NOORDER)
        self.tries += lock.flags & NOQUEUE
        if lock.flags & HEADQUE:
            queue.insert(0, lock)
        else:
            queue.append(lock)
        self.history.asked(self, lock, "waiting")
        if self.waits is not None:
            self.waits.queue(lock, self)

    def _line(self, state: State) -> list[Lock]:
        """The queue for locks in this state, to be changed."""
        queue = self.converting if state is State.CONVERTING else self.waiting
        if not isinstance(queue, list):
            queue = list[Lock]()
            if state is State.CONVERTING:
                self.converting = queue
            else:
                self.waiting = queue
        return queue

    def _dequeue(self, lock: Lock) -> None:
        if self.waits is not None:
            self.waits.unqueue(lock)
        self.grouped -= bool(lock.batch)
        self.loose -= bool(lock.flags & NOORDER)
        self.tries -= lock.flags & NOQUEUE
        self._line(lock.state).remove(lock)
        self.converting, self.waiting = self.converting or (), self.waiting or ()

    def _demote(self, lock: Lock) -> bool:
        def told(other: Lock, mode: int) -> None:
            self.held += UNITS[other.mode] - UNITS[mode]
            self.history.changed(self, other, "converted", mode, other.fence, "demoted")

        return upgrade.demote(lock, self.converting, told)

    def _withdraw(self, lock: Lock) -> None:
        """Who is queued is so no longer: a waiter vanishes."""
        if lock.state is State.WAITING:
            self._remove(lock)
        else:
            self._back(lock)

    def _back(self, lock: Lock) -> None:
        """A conversion is over without success: granted in the mode it still has (U2)."""
        self._dequeue(lock)
        lock.state, lock.asked, lock.flags, lock.value = State.GRANTED, lock.mode, lock.former, None
        if self.waits is not None and self.queued:
            self.waits.stays(lock)

    def _grant(self, lock: Lock, new: int, out: list[Effect]) -> None:
        old, fence, flags, fences = lock.mode, lock.fence, lock.flags, 1
        direction = value_direction(old, new)
        if direction == WRITES:
            self._write(flags, lock.value)
        self.held += UNITS[new] - UNITS[old]
        if old == NONE or not (new == old or is_down(old, new)):
            lock.fence = self.mint()  # a conversion to a stronger mode gets a new number (pitfalls B5)
            if flags & CACHE:
                lock.cached, fences = True, 1 + self.more(fences_of(flags) - 1)
        result = lock.result | (ALTMODE if new != lock.asked else 0)
        if flags & VALBLK and not self.valid:
            result |= VALNOTVALID
        lock.mode = lock.asked = new
        lock.state, lock.value, lock.result, lock.high = State.GRANTED, None, 0, 0
        lock.former = flags
        if self.waits is not None and (self.waiting or self.converting):
            self.waits.stays(lock)
        self.history.changed(self, lock, "granted" if old == NONE else "converted", old, fence)
        read = self.value if flags & VALBLK and direction == READS else None
        out.append(Effect(What.GRANTED, lock.key, "", new, lock.fence, read, result, None, (), fences))

    # -- the value block, and who is here --------------------------------------------------------------------

    def _write(self, flags: int, value: bytes | None) -> None:
        """What a write to the value block does: invalidate, replace, or nothing (L2, L3)."""
        if flags & IVVALBLK:
            self.valid = False
        elif flags & VALBLK and value is not None:
            self.value, self.valid = value, True
        self.history.wrote(self, flags)

    def _write_at_end(self, lock: Lock, flags: int, value: bytes | None) -> None:
        if lock.mode >= PW:
            self._write(flags, value)

    def _add(self, lock: Lock) -> None:
        self.locks[lock.key] = lock
        blocking.listen(self, lock, lock.notify)
        node = lock.key[0]
        self.homes = homes.alone(node) if len(self.locks) == 1 else homes.came(self.homes, node)
        if self.waits is not None:
            self.waits.add(lock, self)

    def _remove(self, lock: Lock) -> None:
        del self.locks[lock.key]
        blocking.listen(self, lock, False)
        if lock.state is not State.GRANTED:
            self._dequeue(lock)
        if lock.state is not State.WAITING:
            self.held -= UNITS[lock.mode]
        if self.waits is not None:
            self.waits.remove(lock)
        self.homes = homes.went(self.homes, self.locks, lock.key[0]) if self.locks else homes.NOBODY
        if not self.locks:
            self.value, self.valid = b"", True  # the value block goes with the last lock (L10, G33)

    # -- snapshots and checks --------------------------------------------------------------------------------

    def encode(self) -> tuple[Any, ...]:
        """The contents as a msgpack-able tuple, equal for equal contents."""
        granted = [lock for _, lock in sorted(self.locks.items()) if lock.state is State.GRANTED]
        queues = granted, self.converting, self.waiting
        return self.value, self.valid, *[tuple([lock.encode() for lock in queue]) for queue in queues]

    @classmethod
    def decode(cls, row: tuple[Any, ...], mint: Mint, now: int) -> Resource:
        """The inverse of ``encode``."""
        resource = cls(mint, row[0], row[1])
        for state, rows in zip(_STATES, row[2:5], strict=True):
            for each in rows:
                lock = Lock.decode(each, state, now)
                resource._add(lock)
                if lock.mode != NONE:
                    resource.held += UNITS[lock.mode]
                if state is not State.GRANTED:
                    resource._line(state).append(lock)
                    resource.loose += bool(lock.flags & NOORDER)
                    resource.tries += lock.flags & NOQUEUE
                    resource.grouped += bool(lock.batch)
        return resource

    def invariants(self) -> None:
        """Assert what must hold after every event (locks.md, end of §1.18)."""
        contents.check(self)


def _no_more(count: int) -> int:
    """The numbers of a resource that belongs to no table come one by one."""
    return 0
