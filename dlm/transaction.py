"""Transactions: several locks, perhaps of several processes and nodes, that count as one owner's.

Deadlock detection asks who waits for whom, and *who* is the calling thread of a client – or a transaction, a
number that all who work for the same purpose give with their requests (``xid``).
"""

from __future__ import annotations

import secrets
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING

from dlm.errors import InvalidRequest

if TYPE_CHECKING:
    from typing import Self

    from dlm.session_base import SessionBase

__all__ = ["XID_BITS", "Transaction", "checked_xid", "current_xid", "in_transaction"]

XID_BITS = 63

#: Of this thread or task: the transactions it is in, innermost last, with the session that each belongs to.
_inside: ContextVar[tuple[tuple[SessionBase, int], ...]] = ContextVar("dlm-transactions", default=())


def current_xid(session: SessionBase) -> int:
    """The innermost transaction of this thread or task with that session; 0 if there is none."""
    inside = _inside.get()
    return next((xid for of, xid in reversed(inside) if of is session), 0) if inside else 0


def in_transaction() -> bool:
    """Whether this thread or task is in any transaction, of whatever session."""
    return bool(_inside.get())


def checked_xid(xid: int) -> int:
    """A transaction id, or 0 for none. Raises ``InvalidRequest`` for anything else."""
    if isinstance(xid, bool) or not isinstance(xid, int) or not 0 <= xid < 1 << XID_BITS:
        raise InvalidRequest(f"a transaction id is a number of at most {XID_BITS} bits, not {xid!r}")
    return int(xid)


class Transaction:
    """Inside ``with client.transaction()``, every lock that this thread or task asks for through ``client`` belongs
    to ``xid``. Others take part with ``client.transaction(xid)``, in any process of any node.

    Not reusable and of one thread or task; they nest, and the innermost counts. The end of it releases nothing.
    """

    def __init__(self, session: SessionBase, xid: int | None = None) -> None:
        self._session = session
        self.xid = checked_xid(xid) if xid is not None else secrets.randbits(XID_BITS) or 1
        if not self.xid:
            raise InvalidRequest("a transaction needs an id other than 0")
        self._entered = False

    def __enter__(self) -> Self:
        if self._entered:
            raise RuntimeError(f"{self!r} was entered before; make another with client.transaction({self.xid})")
        self._entered = True
        _inside.set((*_inside.get(), (self._session, self.xid)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inside = list(_inside.get())
        # Generators may end their blocks out of turn: take out this one, wherever it stands.
        for index in range(len(inside) - 1, -1, -1):
            if inside[index] == (self._session, self.xid):
                del inside[index]
                break
        _inside.set(tuple(inside))

    def __repr__(self) -> str:
        return f"<dlm.Transaction {self.xid:#x}>"
