"""What a node knows about the locks of its own clients: handles, and requests on their way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlm.messages import Kind
from dlm.modes import CACHE, NONE, ORPHAN, PERSISTENT
from dlm.resource import Effect

if TYPE_CHECKING:
    from dlm.group import Group

__all__ = ["Handle", "Request"]


class Request:
    """A lock or convert request that has not been answered yet."""

    __slots__ = ("deadline", "fails", "flags", "kind", "mode", "rid", "timed_out", "value")

    def __init__(
        self, kind: Kind, rid: int, mode: int, flags: int, value: bytes | None, fails: bool = False,
        deadline: int = 0,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.rid = rid
        self.mode = mode
        self.flags = flags
        self.value = value
        self.fails = fails  #: the caller prefers an error to waiting for quorum
        self.deadline = deadline  #: local clock at which it gives up, 0: never
        self.timed_out = False  #: it has given up, and the cancel is on its way


class Handle:
    """One lock of one local session. ``mode`` is what the client has been told that it holds."""

    __slots__ = (
        "advised", "after", "blocking", "cached", "cancel_rid", "ending", "fence", "group", "h", "key", "mode",
        "outcome", "owner", "persistent", "request", "sent", "session", "unlock_rid", "weight", "writes", "xid",
    )  # fmt: skip

    def __init__(
        self, session: int, h: int, key: bytes, request: Request, xid: int = 0, owner: int = 0
    ) -> None:
        self.session = session
        self.h = h
        self.key = key
        self.request: Request | None = request
        self.xid = xid  #: the transaction it is for, 0 if none
        self.owner = owner  #: who in the session asks, for the search of deadlocks; 0: the session itself
        self.mode = NONE
        self.fence = 0
        self.sent = False  #: something of it is, or will be, in the table of this life
        self.ending = False  #: its unlock is on the way
        self.outcome: Effect | None = None  #: decided, but not told yet
        self.after = 0  #: .. and not before all members have this position of the table
        self.writes = False  #: its end writes the value block
        self.unlock_rid = 0
        self.cancel_rid = 0
        self.persistent = bool(request.flags & (PERSISTENT | ORPHAN))  #: stays when the session goes (P1)
        self.cached = bool(request.flags & CACHE)  #: its client may have it idle, and has not said otherwise
        self.blocking = NONE  #: a mode it blocks and has not been told of yet: at most one (B9)
        self.group: Group | None = None  #: the multi-lock it is a part of, until that is answered
        self.weight = 1  #: how many locks it counts for
        self.advised = NONE  #: the mode it was told of last, since its last completion (B6)

    @property
    def resting(self) -> bool:
        """Whether it is granted, and nothing is under way about it: nor is the client's word awaited."""
        told = self.request is None and self.outcome is None and self.group is None and self.mode != NONE
        asked = self.ending or self.unlock_rid or self.cancel_rid or self.blocking != NONE
        asked = asked or (self.cached and self.advised != NONE)
        return told and self.sent and not asked

    def at_rest(self) -> tuple[Any, ...]:
        """What there is to know of a resting handle, beside its numbers and its name; msgpack-able."""
        lock = self.mode, self.fence, self.xid, self.owner
        return (*lock, self.persistent, self.weight, self.advised, self.cached)

    @classmethod
    def resumed(cls, session: int, h: int, key: bytes, row: tuple[Any, ...]) -> Handle:
        """The inverse of ``at_rest``."""
        handle = cls(session, h, key, _DONE, row[2], row[3])
        handle.request, handle.sent = None, True
        handle.mode, handle.fence = row[0], row[1]
        handle.persistent, handle.weight, handle.advised, handle.cached = row[4:]
        return handle


_DONE = Request(Kind.LOCK, 0, NONE, 0, None)  # of a handle whose request is answered
