"""One lock of one session, and the effects that operations on it have (locks.md §1.2, §1.3)."""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from dlm.modes import NONE, NOTIFY, PERSISTENT, VALNOTVALID

if TYPE_CHECKING:
    from dlm.messages import Op

__all__ = ["Effect", "Key", "Lock", "State", "Step", "What"]

WHOSE_KEPT = 1024
_FORMER = 32  #: bits of a lock's flags; what was changed in them stands above those

Key = tuple[int, int, int]  #: (home node, session at that node, handle number of that session)


class State(IntEnum):
    """Where a lock stands (S1)."""

    GRANTED = 0
    CONVERTING = 1
    WAITING = 2


class What(IntEnum):
    """What an effect says about a lock."""

    GRANTED = 0  #: a lock or convert request has succeeded
    REFUSED = 1  #: it failed at once; ``code`` says why, the old mode (if any) is kept
    CANCELED = 2  #: it was withdrawn from its queue; ``mode`` is what is held now, NONE if nothing
    GONE = 3  #: the lock does not exist any more
    CANCEL_DONE = 4  #: a cancel was carried out; ``mode`` is 1 if it withdrew something
    BLOCKING = 5  #: the lock keeps another from its ``mode``: no outcome, advice (§1.10)


class Step(NamedTuple):
    """A lock that waits, in a circle of such: on which name, whose, holding what there and asking for what."""

    name: bytes
    key: Key
    pid: int
    program: str
    mode: int
    asked: int

    @classmethod
    def of(cls, name: bytes, lock: Lock) -> Step:
        """As it is now."""
        return cls(name, lock.key, lock.pid, lock.program, lock.mode, lock.asked)


class Effect(NamedTuple):
    """One outcome, or one piece of advice, addressed to the home of lock ``key``.

    ``value`` is the value block when the operation read it (``None``: not read, the caller's copy stays, L8);
    ``flags`` are DEMOTED, VALNOTVALID (the operation takes part in a value block that is not valid, L5) and
    ALTMODE. ``was`` is the key that an adopted orphan had. ``cycle`` is the circle that a refused request has
    closed: locks that wait, the refused one first; each waits for the next or its owner, the last for the first.
    ``fences``: so many numbers from ``fence`` on are for this lock alone.
    """

    what: What
    key: Key
    code: str = ""
    mode: int = NONE
    fence: int = 0
    value: bytes | None = None
    flags: int = 0
    was: Key | None = None
    cycle: tuple[Step, ...] = ()
    fences: int = 1

    @property
    def valid(self) -> bool:
        """Whether the value block is valid, as far as the operation has to do with it."""
        return not self.flags & VALNOTVALID


class Whose(NamedTuple):
    """Who has asked for a lock, or for a thousand of them."""

    pid: int
    program: str
    xid: int  #: the transaction it belongs to, 0 if none
    owner: int  #: who in the session asked, 0: the session itself
    waiter: Key  #: who waits for it, or is waited for: a transaction, or a part of a session (locks.md D5)


@lru_cache(WHOSE_KEPT)
def _whose(node: int, session: int, pid: int, program: str, xid: int, owner: int) -> Whose:
    """Locks of the same have the same object, mostly."""
    return Whose(pid, program, xid, owner, (0, 0, xid) if xid else (node, session, owner))


class Lock:
    """One lock of one session. ``mode`` is what it holds (NONE while waiting), ``asked`` what it wants."""

    __slots__ = (
        "asked", "batch", "cached", "fence", "flags", "former", "high", "key", "mode", "notify", "order", "orphan",
        "persistent", "result", "since", "state", "value", "waiter", "whose",
    )  # fmt: skip

    def __init__(self, key: Key, asked: int, flags: int = 0, value: bytes | None = None,
                 pid: int = 0, program: str = "", since: int = 0, xid: int = 0,
                 owner: int = 0) -> None:  # fmt: skip
        self.key = key
        self.mode = NONE
        self.asked = asked
        self.flags = flags  #: of the operation in progress, else of the last that succeeded
        self.former = flags  #: of the last that succeeded, which count again if this one fails
        self.value = value  #: what the caller would write if the operation in progress writes
        self.fence = 0
        self.since = since  #: local clock (people, 200 ms rule); not replicated
        self.state = State.WAITING
        self.result = 0  #: flags for the outcome of the operation in progress
        self.notify = bool(flags & NOTIFY)  #: its session wants to hear whom it blocks
        self.high = 0  #: the highest mode that it was told it blocks, since its last grant (B4)
        self.persistent = bool(flags & PERSISTENT)  #: survives its session, as an orphan (P1)
        self.orphan = False  #: its session has gone
        self.cached = False  #: its client may have it idle, and has not said otherwise (``dlm.tries``)
        self.order = 0  #: the table's position at which it began to wait, 0 where only the owner knows
        self.batch: tuple[bytes, ...] = ()  #: the names of the multi-lock it waits as a part of
        self.whose = whose = _whose(key[0], key[1], pid, program, xid, owner)
        self.waiter = whose.waiter  #: a step less in the search for circles

    @property
    def pid(self) -> int:
        """See ``Whose``."""
        return self.whose.pid

    @property
    def program(self) -> str:
        """See ``Whose``."""
        return self.whose.program

    @classmethod
    def asked_for(cls, op: Op, now: int) -> Lock:
        """The lock that a request asks for."""
        key = (op.node, op.session, op.h)
        lock = cls(key, op.mode, op.flags, op.value, op.pid, op.program, now, op.xid, op.owner)
        lock.batch = op.batch
        return lock

    def encode(self) -> tuple[Any, ...]:
        """The replicated part as a msgpack-able tuple."""
        marks = self.notify | self.persistent << 1 | self.orphan << 2 | self.cached << 3
        flags = self.flags | (self.flags ^ self.former) << _FORMER
        operation = self.mode, self.asked, flags, self.value, self.fence
        pid, program, xid, owner, _ = self.whose
        whose = xid, owner, self.order, self.batch
        return (*self.key, *operation, pid, program, marks, self.high, self.result, *whose)

    @classmethod
    def decode(cls, row: tuple[Any, ...], state: State, since: int) -> Lock:
        """The inverse of ``encode``."""
        flags, changed = row[5] & (1 << _FORMER) - 1, row[5] >> _FORMER
        lock = cls((row[0], row[1], row[2]), row[4], flags, row[6], row[8], row[9], since, row[13], row[14])
        lock.former = flags ^ changed
        lock.mode, lock.fence, lock.state = row[3], row[7], state
        lock.notify, lock.persistent, lock.orphan = bool(row[10] & 1), bool(row[10] & 2), bool(row[10] & 4)
        lock.cached = bool(row[10] & 8)
        lock.high, lock.result = row[11], row[12]
        lock.order, lock.batch = row[15], row[16]
        return lock
