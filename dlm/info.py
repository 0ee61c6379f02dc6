"""What people and programs are shown of locks: modes by name, and who holds and wants what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from dlm.modes import COMPATIBLE
from dlm.text import name_text

__all__ = ["LOW_LEVEL", "Flag", "Holder", "LockInfo", "Mode", "Outcome"]


class Mode(IntEnum):
    """How much a lock excludes. ``EX`` excludes all but NL, ``PR`` are readers that share."""

    NL = 0  #: a placeholder: keeps the resource and its value block alive, excludes nobody
    CR = 1  #: reads, while others may write
    CW = 2  #: writes, while others may write as well
    PR = 3  #: reads, nobody writes
    PW = 4  #: writes, nobody else writes; CR readers stay
    EX = 5  #: alone

    @classmethod
    def parse(cls, text: str) -> Mode:
        """The mode with this name, in any case. Raises ``ValueError`` naming the choices."""
        try:
            return cls[text.upper()]
        except KeyError:
            raise ValueError(f"no mode {text!r}: one of {', '.join(m.name for m in cls)}") from None


class Flag(IntFlag):
    """How a request is to be treated; the values are those of dlmconstants.h. ``docs/locks.md`` explains each.

    CANCEL, CONVERT, VALBLK, IVVALBLK, FORCEUNLOCK and TIMEOUT are for ``dlm.Lockspace``: ``Client`` and ``Held``
    have methods and arguments instead.
    """

    NOQUEUE = 0x1  #: refuse rather than wait
    CANCEL = 0x2  #: unlock withdraws what is in progress, and nothing else
    CONVERT = 0x4  #: lock changes the mode of a lock
    VALBLK = 0x8  #: take part in the value block
    QUECVT = 0x10  #: a conversion lines up behind other conversions
    IVVALBLK = 0x20  #: mark the value block as not valid
    CONVDEADLK = 0x40  #: a conversion may give up the old mode meanwhile, rather than fail with Deadlock
    PERSISTENT = 0x80  #: the lock outlives its session, as an orphan of its node
    NODLCKWT = 0x100  #: this wait does not count in the search for deadlocks (D4)
    NODLCKBLK = 0x200  #: this lock is in nobody's way in the search for deadlocks (D4)
    EXPEDITE = 0x400  #: an NL lock is granted at once
    NOQUEUEBAST = 0x800  #: a refused NOQUEUE still tells the holders
    HEADQUE = 0x1000  #: to the head of the queue
    NOORDER = 0x2000  #: may overtake
    ORPHAN = 0x4000  #: adopt an orphan of this name and mode
    ALTPR = 0x8000  #: PR will do if the mode asked for cannot be had
    ALTCW = 0x10000  #: CW will do
    FORCEUNLOCK = 0x20000  #: unlock whatever is in progress
    TIMEOUT = 0x40000  #: there is a time-out: accepted, the argument says which

    def args(self) -> dict[str, bool]:
        """The same as arguments of a request."""
        if not self:
            return {}
        return {str(flag.name).lower(): True for flag in Flag if flag & self and flag not in _NOT_SENT}


_NOT_SENT = Flag.CONVERT | Flag.TIMEOUT  #: other arguments say so
LOW_LEVEL = _NOT_SENT | Flag.CANCEL | Flag.VALBLK | Flag.IVVALBLK | Flag.FORCEUNLOCK


class Outcome(IntFlag):
    """What the last operation on a lock said besides its success."""

    DEMOTED = 0x1  #: the old mode was given up meanwhile (CONVDEADLK)
    VALNOTVALID = 0x2  #: the value block is not valid
    ALTMODE = 0x4  #: granted in the mode of ALTPR or ALTCW


@dataclass(frozen=True, slots=True)
class Holder:
    """One lock on a name, held or asked for: session ``session`` of node ``node``, process ``pid``,
    ``program``.

    ``mode`` is the granted mode (``None`` for a waiter), ``asked`` the one it waits for (``None`` for a
    holder); ``since_us`` microseconds on the clock of the node that told it, 0 if unknown.
    """

    node: int
    session: int
    handle: int
    pid: int
    program: str
    mode: Mode | None
    asked: Mode | None
    fence: int
    since_us: int
    orphan: bool = False  #: its session has gone; it waits to be adopted or purged
    together: tuple[bytes, ...] = ()  #: the names of the multi-lock it waits as a part of
    cached: bool = False  #: its client may keep it without use, until somebody asks for it

    @classmethod
    def from_row(cls, row: Mapping[str, Any], waits: bool = False) -> Holder:
        """From one element of the queues in the answer of ``ls`` and ``show``."""
        return cls(
            node=int(row.get("node", 0)),
            session=int(row.get("session", 0)),
            handle=int(row.get("h", 0)),
            pid=int(row.get("pid") or 0),
            program=_text(row.get("name") or ""),
            mode=_mode(row.get("mode")),
            asked=_mode(row.get("asked")) if waits else None,
            fence=int(row.get("fence") or 0),
            since_us=int(row.get("since_us") or 0),
            orphan=bool(row.get("orphan")),
            together=tuple(row.get("together") or ()),
            cached=bool(row.get("cached")),
        )

    def __str__(self) -> str:
        wanted = f":{self.asked.name}" if self.asked is not None else ""
        return f"{self.node}/{self.pid or self.session}{wanted}{self._remark()}"

    def _remark(self) -> str:
        others = len(self.together) - 1
        if others > 0:
            return f"(with {others} {'other' if others == 1 else 'others'})"
        return "(orphan)" if self.orphan else "(cached)" if self.cached else ""

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "node": self.node,
            "session": self.session,
            "handle": self.handle,
            "pid": self.pid,
            "program": self.program,
            "mode": self.mode.name if self.mode is not None else None,
            "asked": self.asked.name if self.asked is not None else None,
            "fence": self.fence,
            "since_us": self.since_us,
            "orphan": self.orphan,
            "together": [name_text(name) for name in self.together],
            "cached": self.cached,
        }


@dataclass(frozen=True, slots=True)
class LockInfo:
    """One resource. Queues are in order (API-R13); ``None`` where another node alone knows them.

    ``state``: ``shared`` (all nodes know its queues), ``private`` (node ``owner`` alone does), ``handover``
    (on the way from the one to the other). ``fence`` is the highest
    among the locks, ``None`` if unknown.
    """

    name: bytes
    state: str
    owner: int | None
    mode: Mode | None
    holders: tuple[Holder, ...] | None
    converting: tuple[Holder, ...] | None
    waiters: tuple[Holder, ...] | None
    fence: int | None
    value_valid: bool | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> LockInfo:
        """From the daemon's answer to ``show``, or one row of ``ls``."""
        name = row["name"]
        return cls(
            name=name if isinstance(name, bytes) else str(name).encode(),
            state=_text(row.get("state", "shared")),
            owner=row.get("owner"),
            mode=_mode(row.get("mode")),
            holders=_queue(row.get("holders")),
            converting=_queue(row.get("converting"), waits=True),
            waiters=_queue(row.get("waiters"), waits=True),
            fence=row.get("fence"),
            value_valid=row.get("value_valid"),
        )

    def blockers(self, node: int, session: int, handle: int) -> tuple[Holder, ...]:
        """For whom that lock waits: whoever holds what it may not share, then those queued before it.

        Empty if it does not wait, or if this node does not know.
        """
        converting, waiting = self.converting or (), self.waiters or ()
        queue = (*converting, *waiting)
        me = (node, session, handle)
        at = next((i for i, one in enumerate(queue) if (one.node, one.session, one.handle) == me), None)
        asked = None if at is None else queue[at].asked
        if at is None or asked is None:
            return ()
        holding = (*(self.holders or ()), *converting)
        found = [one for one in holding if one.mode is not None and not COMPATIBLE[one.mode][asked]]
        found += queue[:at]
        return tuple(one for one in dict.fromkeys(found) if one is not queue[at])

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, the name as text."""
        return {
            "name": name_text(self.name),
            "state": self.state,
            "owner": self.owner,
            "mode": self.mode.name if self.mode is not None else None,
            "holders": _plain(self.holders),
            "converting": _plain(self.converting),
            "waiters": _plain(self.waiters),
            "fence": self.fence,
            "value_valid": self.value_valid,
        }


def _mode(value: str | None) -> Mode | None:
    return None if value is None else Mode[value]


def _text(value: Any) -> str:
    return name_text(value) if isinstance(value, bytes) else str(value)


def _queue(rows: Sequence[Mapping[str, Any]] | None, waits: bool = False) -> tuple[Holder, ...] | None:
    return None if rows is None else tuple(Holder.from_row(row, waits) for row in rows)


def _plain(queue: tuple[Holder, ...] | None) -> list[dict[str, Any]] | None:
    return None if queue is None else [holder.to_json() for holder in queue]
