"""One lockable name: its locks, its convert and wait queues, its value block (locks.md §1.3–§1.9).

Everything that decides who gets what stands here, and nothing else does: no nodes that die, no messages, no
time. A resource answers each operation by appending *effects* to a list, in the order of GRANT-Q13: the
outcome of the acting lock first, then grants of others in queue order.

Granted locks have no order among them (S2); the convert and wait queues are first in, first out, except
HEADQUE. A converting lock *still holds* its granted mode (S1), so the modes held are counted over both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple

from dlm.modes import (
    COMPATIBLE,
    CONFLICTING,
    CONVDEADLK,
    EXPEDITE,
    HEADQUE,
    IVVALBLK,
    NL,
    NODLCKWT,
    NONE,
    NOORDER,
    NOQUEUE,
    PW,
    QUECVT,
    READS,
    VALBLK,
    WRITES,
    is_down,
    value_direction,
)

__all__ = ["Effect", "Key", "Lock", "Mint", "Resource", "State", "What"]

Key = tuple[int, int, int]  #: (home node, session at that node, handle number of that session)
Mint = Callable[[], int]  #: gives the next fence number


class State(IntEnum):
    """Where a lock stands (S1)."""

    GRANTED = 0
    CONVERTING = 1
    WAITING = 2


class What(IntEnum):
    """What an effect says about a lock."""

    GRANTED = 0  #: a lock or convert request has succeeded
    REFUSED = 1  #: it failed at once; ``code`` says why, the old mode (if any) is kept
    CANCELED = 2  #: it was withdrawn from its queue; the old mode (if any) is kept
    GONE = 3  #: the lock does not exist any more
    CANCEL_DONE = 4  #: a cancel was carried out; ``mode`` is 1 if it withdrew something


class Effect(NamedTuple):
    """One outcome, addressed to the home of lock ``key``.

    ``value`` is the value block when the operation read it (``None``: not read, the caller's copy stays, L8);
    ``valid`` is false when the operation takes part in the value block and that is not valid (L5).
    """

    what: What
    key: Key
    code: str = ""
    mode: int = NONE
    fence: int = 0
    value: bytes | None = None
    valid: bool = True


class Lock:
    """One lock of one session. ``mode`` is what it holds (NONE while waiting), ``asked`` what it wants."""

    __slots__ = ("asked", "fence", "flags", "key", "mode", "pid", "program", "since", "state", "value")

    def __init__(self, key: Key, asked: int, flags: int = 0, value: bytes | None = None,
                 pid: int = 0, program: str = "", since: int = 0) -> None:  # fmt: skip
        self.key = key
        self.mode = NONE
        self.asked = asked
        self.flags = flags
        self.value = value  #: what the caller would write if the operation in progress writes
        self.fence = 0
        self.pid = pid
        self.program = program
        self.since = since  #: local clock (people, 200 ms rule); not replicated
        self.state = State.WAITING

    def encode(self) -> tuple[Any, ...]:
        """The replicated part as a msgpack-able tuple."""
        return (*self.key, self.mode, self.asked, self.flags, self.value, self.fence, self.pid, self.program)

    @classmethod
    def decode(cls, row: tuple[Any, ...], state: State, since: int) -> Lock:
        """The inverse of ``encode``."""
        lock = cls((row[0], row[1], row[2]), row[4], row[5], row[6], row[8], row[9], since)
        lock.mode = row[3]
        lock.fence = row[7]
        lock.state = state
        return lock


class Resource:
    """The locks of one name. ``mint`` gives fence numbers; the owner of the resource may replace it."""

    __slots__ = ("converting", "held", "homes", "locks", "mint", "valid", "value", "waiting")

    def __init__(self, mint: Mint, value: bytes = b"", valid: bool = True) -> None:
        self.mint = mint
        self.locks: dict[Key, Lock] = {}
        self.converting: list[Lock] = []
        self.waiting: list[Lock] = []
        self.held = [0] * 6  #: how many locks hold each mode (granted and converting)
        self.homes: dict[int, int] = {}  #: how many locks (in any state) each node has here
        self.value = value
        self.valid = valid

    # -- operations ------------------------------------------------------------------------------------------

    def lock(self, lock: Lock, out: list[Effect]) -> None:
        """A new request (Q1, Q2, Q3, Q7, Q9, Q11)."""
        if lock.key in self.locks:
            out.append(Effect(What.REFUSED, lock.key, "exists"))
            return
        flags = lock.flags
        idle = not self.converting and not self.waiting
        if flags & EXPEDITE or (self._fits(lock) and (idle or flags & NOORDER)):
            self._add(lock)
            self._grant(lock, out)
        elif flags & NOQUEUE:
            out.append(Effect(What.REFUSED, lock.key, "again"))
        else:
            self._add(lock)
            self._enqueue(self.waiting, lock, State.WAITING)

    def convert(self, key: Key, asked: int, flags: int, value: bytes | None, now: int, out: list[Effect]) -> None:
        """A granted lock wants another mode (Q2, Q3, Q5, Q6, Q7, Q11; M3)."""
        lock = self.locks.get(key)
        if lock is None or lock.state is not State.GRANTED:
            out.append(Effect(What.REFUSED, key, "unknown" if lock is None else "busy"))
            return
        before = lock.asked, lock.flags, lock.value
        lock.asked, lock.flags, lock.value = asked, flags, value
        in_place = not flags & QUECVT or flags & NOORDER or not self.converting
        if in_place and self._fits(lock):
            self._grant(lock, out)
        elif flags & NOQUEUE or (self._deadlocked(lock) and not self._demote(lock)):
            lock.asked, lock.flags, lock.value = before
            out.append(Effect(What.REFUSED, key, "again" if flags & NOQUEUE else "deadlock"))
            return
        else:
            lock.since = now
            self._enqueue(self.converting, lock, State.CONVERTING)
        self.scan(out)

    def cancel(self, key: Key, out: list[Effect]) -> bool:
        """Withdraw what is queued (U1, U2, U6). False, and nothing happens, if the grant came first (U3)."""
        lock = self.locks.get(key)
        if lock is None or lock.state is State.GRANTED:
            return False
        if lock.state is State.WAITING:
            self._remove(lock)
        else:
            self.converting.remove(lock)
            lock.state, lock.asked = State.GRANTED, lock.mode
        out.append(Effect(What.CANCELED, key))
        self.scan(out)
        return True

    def unlock(self, key: Key, flags: int, value: bytes | None, out: list[Effect]) -> bool:
        """End a lock in whatever state it is (U4, U5). False if there is none."""
        lock = self.locks.get(key)
        if lock is None:
            return False
        self._write_at_end(lock, flags, value)
        self._remove(lock)
        out.append(Effect(What.GONE, key))
        self.scan(out)
        return True

    def purge(self, nodes: Iterable[int], out: list[Effect]) -> None:
        """Drop every lock of nodes that have ended; a lost PW or EX leaves the value block not valid (L7)."""
        dead = [node for node in nodes if node in self.homes]
        if not dead:
            return
        for lock in [lock for lock in self.locks.values() if lock.key[0] in dead]:
            self._write_at_end(lock, IVVALBLK, None)
            self._remove(lock)
        self.scan(out)

    def scan(self, out: list[Effect]) -> None:
        """Grant what has become possible: converters first, then waiters, in order (Q8, Q10, Q12)."""
        while self.converting and self._fits(self.converting[0]):
            self._grant(self.converting.pop(0), out)
        while not self.converting and self.waiting and self._fits(self.waiting[0]):
            self._grant(self.waiting.pop(0), out)

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
        return max((mode for mode in range(6) if self.held[mode]), default=NONE)

    # -- the parts -------------------------------------------------------------------------------------------

    def _fits(self, lock: Lock) -> bool:
        """Whether no *other* lock holds a mode that conflicts with the one asked for (Q2, Q3)."""
        held, own = self.held, lock.mode
        return all(held[mode] <= (mode == own) for mode in CONFLICTING[lock.asked])

    def _deadlocked(self, lock: Lock) -> bool:
        """Whether queueing this conversion would make a conversion deadlock.

        Two converters block each other for ever when the one in front asks for a mode that conflicts with the
        mode which the one behind holds: the first cannot be granted, the second is not first in the queue
        (Q8). Judged by queue position, both for those in front of ``lock`` and, with HEADQUE, for those
        behind it (G30).
        """
        if lock.flags & NODLCKWT:
            return False
        if lock.flags & HEADQUE:
            return any(not COMPATIBLE[behind.mode][lock.asked] for behind in self.converting)
        return any(not COMPATIBLE[lock.mode][ahead.asked] for ahead in self.converting)

    def _demote(self, lock: Lock) -> bool:
        """Resolve a conversion deadlock by holding NL meanwhile, if the caller agreed to it (CONVDEADLK)."""
        if not lock.flags & CONVDEADLK or lock.flags & HEADQUE:
            return False
        self.held[lock.mode] -= 1
        self.held[NL] += 1
        lock.mode = NL
        return True

    def _enqueue(self, queue: list[Lock], lock: Lock, state: State) -> None:
        lock.state = state
        if lock.flags & HEADQUE:
            queue.insert(0, lock)
        else:
            queue.append(lock)

    def _grant(self, lock: Lock, out: list[Effect]) -> None:
        old, new, flags = lock.mode, lock.asked, lock.flags
        direction = value_direction(old, new)
        if direction == WRITES:
            self._write(flags, lock.value)
        if old != NONE:
            self.held[old] -= 1
        self.held[new] += 1
        if old == NONE or not (new == old or is_down(old, new)):
            lock.fence = self.mint()  # a conversion to a stronger mode gets a new number (pitfalls B5)
        lock.mode, lock.state, lock.value = new, State.GRANTED, None
        read = self.value if flags & VALBLK and direction == READS else None
        valid = self.valid or not flags & VALBLK
        out.append(Effect(What.GRANTED, lock.key, "", new, lock.fence, read, valid))

    def _write(self, flags: int, value: bytes | None) -> None:
        """What a write to the value block does: invalidate, replace, or nothing (L2, L3)."""
        if flags & IVVALBLK:
            self.valid = False
        elif flags & VALBLK and value is not None:
            self.value, self.valid = value, True

    def _write_at_end(self, lock: Lock, flags: int, value: bytes | None) -> None:
        if lock.mode >= PW:
            self._write(flags, value)

    def _add(self, lock: Lock) -> None:
        self.locks[lock.key] = lock
        node = lock.key[0]
        self.homes[node] = self.homes.get(node, 0) + 1

    def _remove(self, lock: Lock) -> None:
        del self.locks[lock.key]
        if lock.state is State.WAITING:
            self.waiting.remove(lock)
        else:
            self.held[lock.mode] -= 1
            if lock.state is State.CONVERTING:
                self.converting.remove(lock)
        node = lock.key[0]
        self.homes[node] -= 1
        if not self.homes[node]:
            del self.homes[node]
        if not self.locks:
            self.value, self.valid = b"", True  # the value block goes with the last lock (L10, G33)

    # -- snapshots and checks --------------------------------------------------------------------------------

    def encode(self) -> tuple[Any, ...]:
        """The contents as a msgpack-able tuple, equal for equal contents."""
        granted = [lock for lock in self.locks.values() if lock.state is State.GRANTED]
        granted.sort(key=lambda lock: lock.key)
        queues = granted, self.converting, self.waiting
        return self.value, self.valid, *(tuple(lock.encode() for lock in queue) for queue in queues)

    @classmethod
    def decode(cls, row: tuple[Any, ...], mint: Mint, now: int) -> Resource:
        """The inverse of ``encode``."""
        resource = cls(mint, row[0], row[1])
        for state, rows in zip(State, row[2:5], strict=True):
            for each in rows:
                lock = Lock.decode(each, state, now)
                resource._add(lock)
                if lock.mode != NONE:
                    resource.held[lock.mode] += 1
                if state is not State.GRANTED:
                    (resource.converting if state is State.CONVERTING else resource.waiting).append(lock)
        return resource

    def invariants(self) -> None:
        """Assert what must hold after every event (locks.md, end of §1.18)."""
        holders = [lock for lock in self.locks.values() if lock.state is not State.WAITING]
        for i, one in enumerate(holders):
            for other in holders[:i]:
                assert COMPATIBLE[one.mode][other.mode], f"{one.key} and {other.key} hold incompatible modes"
        for mode in range(6):
            assert self.held[mode] == sum(lock.mode == mode for lock in holders), "held modes are miscounted"
        assert not self.converting or not self._fits(self.converting[0]), "an idle converter"
        if self.waiting and not self.converting:
            assert not self._fits(self.waiting[0]), "the first waiter could be granted"
        assert all(lock.mode == NONE for lock in self.waiting), "a waiter holds something"
        queued = [lock.key for lock in (*self.converting, *self.waiting)]
        assert len(set(queued)) == len(queued), "a lock is queued twice"
        states = {key for key, lock in self.locks.items() if lock.state is not State.GRANTED}
        assert set(queued) == states, "queues and states differ"
        counted: dict[int, int] = {}
        for lock in self.locks.values():
            counted[lock.key[0]] = counted.get(lock.key[0], 0) + 1
        assert counted == self.homes, "locks per node are miscounted"
