"""Several locks at once: ``client.all(...)`` takes all of them at one moment, or none.

::

    with locks.all("acct/1", "acct/2", timeout=5) as held:
        transfer(fences=held.fences)

Nobody ever sees a part of it held, whatever happens on the way; so callers that want the same locks in different
orders cannot block each other, and nobody has to agree on an order. It costs one ordered message, however many the
names are, and none if all of them are at home on this node.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, cast

from dlm import answers
from dlm.asking import requested
from dlm.errors import LockLost, LockTimeout, NotHeld
from dlm.grant import add_loss
from dlm.grants import AskedAll, Grants, NameAndMode, merged, numbered
from dlm.held import Held, Loss, wait_lost
from dlm.info import Mode
from dlm.session import Session, checked_timeout

if TYPE_CHECKING:
    from typing import Self

    from dlm.client import Client

__all__ = ["HeldAll", "LockAll", "Together"]

OnLost = Callable[["HeldAll", str], object]
WhenNoQuorum = Literal["wait", "fail"]


class HeldAll(Grants[Held]):
    """All locks of one ``all``, in the order in which they were named; each is a ``Held`` of its own, too.

    ``held["acct/1"]`` is the one with this name. Thread-safe, like its parts. As a context manager it releases at
    the end what is still held of it.
    """

    _session: Session

    def __init__(self, session: Session, parts: Sequence[Held]) -> None:
        super().__init__(session, parts)
        self.lost = Loss(self)  #: set when one of them is lost

    def wait_lost(self, timeout: float | None) -> bool:
        """See ``Loss.wait``."""
        return wait_lost(self._session, self, timeout)

    def release(self, wait: bool = False, *, invalidate: bool = False) -> None:
        """Give back all that are not released yet, together. Otherwise as ``Held.release``.

        Raises ``NotHeld`` if all were released before, and ``LockLost`` if one was not held for certain any more.
        """
        lost, rows, converting = self._end_all(invalidate)
        for part in converting:  # its conversion has to be withdrawn first
            with contextlib.suppress(LockLost, NotHeld):
                part.release(wait, invalidate=invalidate)
        for request in self._unlocks(rows):
            if wait:
                self._session.call_release("unlock_all", request, self.names[0], lost is not None)
            else:
                self._session.post("unlock_all", request)
        if lost is not None:
            raise lost

    # -- with

    def __enter__(self) -> Self:
        for part in self:
            part.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.released:
            return
        try:
            self.release()
        except (LockLost, NotHeld) as lost:
            if error is None:
                raise
            add_loss(error, lost)


class LockAll:
    """Several names with their modes and a time-out: what ``with`` takes. Reusable, also by several threads."""

    def __init__(
        self,
        client: Client,
        names: dict[bytes, Mode],
        timeout: float | None,
        no_quorum: WhenNoQuorum,
        on_lost: OnLost | None,
        xid: int | None,
    ) -> None:
        self.names = names  #: the mode of each
        self.timeout = checked_timeout(timeout)
        self._client = client
        self._no_quorum: WhenNoQuorum = no_quorum
        self._on_lost = on_lost
        self._xid = xid
        self._guard = threading.Lock()
        self._entered: list[tuple[int, HeldAll]] = []

    def acquire(self) -> HeldAll:
        """Take them, without ``with``; see ``Client.acquire_all``."""
        session, timeout = self._client.session, self.timeout
        limit = None if timeout is None else time.monotonic() + timeout
        session.check_process()
        numbers = numbered(session, self.names)
        held = HeldAll(session, [Held(session, name, mode, numbers[name]) for name, mode in self.names.items()])
        asked = AskedAll(session, held)
        session.kept.make_room(session.space, self.names)
        args = asked.args(timeout, self._no_quorum, self._xid)
        with requested(session, "lock_all", args, asked.withdraw) as future:
            result, late = session.outcome(future, asked, timeout)
            if late and timeout is not None:
                raise session.too_late(asked.name, timeout)
            with session.changed:
                asked.granted(result)
            for part in held:
                session.settle(part, limit)
        if self._on_lost is not None:
            self._client.watch.add(held, self._on_lost)
        return held

    def __enter__(self) -> HeldAll:
        held = self.acquire()
        with self._guard:
            self._entered.append((threading.get_ident(), held))
        return held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave().__exit__(kind, error, trace)

    def _leave(self) -> HeldAll:
        """What belongs to this exit: the last one entered by this thread, else the last one."""
        me = threading.get_ident()
        with self._guard:
            for index in range(len(self._entered) - 1, -1, -1):
                if self._entered[index][0] == me:
                    return self._entered.pop(index)[1]
            return self._entered.pop()[1]

    def __repr__(self) -> str:
        names = ", ".join(f"{answers.name_text(name)!r} {mode.name}" for name, mode in self.names.items())
        return f"<dlm.LockAll {names} timeout={self.timeout}>"


class Together:
    """The part of ``Client`` that is about several locks at once."""

    def all(
        self,
        *names: NameAndMode,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        xid: int | None = None,
    ) -> LockAll:
        """A reusable description of several locks, taken by ``with`` at one moment, or not at all.

        ``names`` are names, or pairs of a name and its mode; ``mode`` is the one of those without. A name that
        comes twice is taken once, in the weakest mode that includes both. The other arguments are as for
        ``acquire``: ``timeout`` is for all together, 0 is a try; ``on_lost(held, reason)`` is called once, with
        all of them, when one is lost.

        Raises ``InvalidRequest`` without a name; what taking them raises is said at ``acquire_all``.
        """
        asked = merged(names, Mode(mode))
        return LockAll(cast("Client", self), asked, timeout, no_quorum, on_lost, xid)

    def acquire_all(
        self,
        *names: NameAndMode,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        xid: int | None = None,
    ) -> HeldAll:
        """Take all of these locks at one moment, or none; arguments as for ``all``. A caller that gives up, in
        whatever way, leaves nothing behind in any queue (API-R8).

        Raises what ``acquire`` raises; ``name`` of the exception is then all of the names.
        """
        return self.all(
            *names, mode=mode, timeout=timeout, no_quorum=no_quorum, on_lost=on_lost, xid=xid
        ).acquire()

    def try_all(
        self, *names: NameAndMode, mode: Mode = Mode.EX, on_lost: OnLost | None = None
    ) -> HeldAll | None:
        """Take all of these locks if none needs waiting for other holders, else ``None``."""
        try:
            return self.acquire_all(*names, mode=mode, timeout=0, on_lost=on_lost)
        except LockTimeout:
            return None
