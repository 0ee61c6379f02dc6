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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from dlm import answers
from dlm.errors import InvalidRequest, LockLost, LockTimeout, NotHeld
from dlm.held import Held, Loss
from dlm.info import Mode
from dlm.portions import by_size
from dlm.session import Session, checked_timeout

if TYPE_CHECKING:
    from typing import Self

    from dlm.client import Client

__all__ = ["HeldAll", "LockAll", "Together"]

Name = str | bytes
NameAndMode = Name | tuple[Name, Mode]
OnLost = Callable[["HeldAll", str], object]
WhenNoQuorum = Literal["wait", "fail"]


class HeldAll(Sequence[Held]):
    """All locks of one ``all``, in the order in which they were named; each is a ``Held`` of its own, too.

    ``held["acct/1"]`` is the one with this name. Thread-safe, like its parts. As a context manager it releases at
    the end what is still held of it.
    """

    def __init__(self, session: Session, parts: Sequence[Held]) -> None:
        self._session = session
        self._parts = tuple(parts)
        self._by_name = {part.name: part for part in parts}
        self.lost = Loss(self)  #: set when one of them is lost

    # -- a sequence

    @overload
    def __getitem__(self, which: int | str | bytes) -> Held: ...

    @overload
    def __getitem__(self, which: slice) -> Sequence[Held]: ...

    def __getitem__(self, which: int | str | bytes | slice) -> Held | Sequence[Held]:
        if isinstance(which, str | bytes):
            return self._by_name[answers.name_bytes(which)]
        return self._parts[which]

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def names(self) -> tuple[bytes, ...]:
        """The names."""
        return tuple(part.name for part in self._parts)

    @property
    def fences(self) -> tuple[int, ...]:
        """The fencing token of each; see ``Held.fence``."""
        return tuple(part.fence for part in self._parts)

    # -- are they still held?

    @property
    def released(self) -> bool:
        """Whether all of them have been released."""
        return all(part.released for part in self._parts)

    @property
    def valid(self) -> bool:
        """Whether all of them are held for certain at this moment."""
        return all(part.valid for part in self._parts)

    def loss_now(self) -> str | None:
        """Why one of them is not valid at this moment although it was not released; ``None`` if there is none."""
        return next((reason for part in self._parts if (reason := part.loss_now()) is not None), None)

    def check(self) -> None:
        """Return if all of them are held for certain at this moment.

        Raises as ``Held.check``, for the first that is not.
        """
        for part in self._parts:
            part.check()

    def wait_lost(self, timeout: float | None) -> bool:
        """See ``Loss.wait``."""
        self._session.check_process()
        limit = None if timeout is None else time.monotonic() + timeout
        with self._session.changed:
            while not self.released or self.loss_now() is not None:
                if self.loss_now() is not None:
                    return True
                rest = None if limit is None else limit - time.monotonic()
                if rest is not None and rest <= 0:
                    return False
                self._session.changed.wait(self.lease_rest_s(rest))
            return False

    def lease_rest_s(self, at_most: float | None = None) -> float:
        """See ``Held.lease_rest_s``."""
        return self._parts[0].lease_rest_s(at_most)

    def take_blocking(self) -> Mode | None:
        """Advice goes to the single locks, which nobody watches here."""
        return None

    # -- giving them back

    def release(self, wait: bool = False, *, invalidate: bool = False) -> None:
        """Give back all that are not released yet, together. Otherwise as ``Held.release``.

        Raises ``NotHeld`` if all were released before, and ``LockLost`` if one was not held for certain any more.
        """
        session = self._session
        reasons = [(part, part.loss_now()) for part in self._parts]
        rows: list[dict[str, Any]] = []
        converting: list[Held] = []
        with session.changed:
            due = [part for part in self._parts if not part.released]
            if not due:
                raise NotHeld(f"locks {answers.name_text(_label(self.names))!r} have been released")
            for part in due:
                if part.converting:
                    converting.append(part)
                else:
                    rows.append(part.begin_release(invalidate))
            session.changed.notify_all()
        for part in converting:  # its conversion has to be withdrawn first
            with contextlib.suppress(LockLost, NotHeld):
                part.release(wait, invalidate=invalidate)
        if rows:
            self._submit(rows, wait)
        for part, reason in reasons:
            if reason is not None:
                raise answers.lost(part.name, part.fence, reason)

    def _submit(self, rows: list[dict[str, Any]], wait: bool) -> None:
        for portion in by_size(rows, lambda row: len(row.get("value") or b"")):  # as a rule there is one
            if wait:
                self._session.call_release("unlock_all", {"locks": portion}, self._parts[0].name)
            else:
                self._session.post("unlock_all", {"locks": portion})

    # -- with

    def __enter__(self) -> Self:
        for part in self._parts:
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
            # The body's own exception is the news; the loss is added to it (API-R5).
            if error is None:
                raise
            if not isinstance(error, LockLost):
                error.add_note(f"meanwhile: {lost}")

    def __repr__(self) -> str:
        return f"<HeldAll {', '.join(map(repr, self._parts))}>"


class _Asked:
    """What a request for several locks is known by while nothing is held: its first handle, and all its names."""

    def __init__(self, session: Session, names: dict[bytes, Mode]) -> None:
        ordered = sorted(names)
        serials = session.next_serials(len(names))
        self.serial = serials[0]
        self.name = _label(ordered)
        self.locks = [(name, int(names[name])) for name in ordered]
        numbers = dict(zip(ordered, serials, strict=True))
        parts = [Held(session, name, mode, numbers[name]) for name, mode in names.items()]
        self.held = HeldAll(session, parts)
        self._session = session

    def granted(self, result: dict[str, Any]) -> None:
        """The node's answer. Called under ``session.changed``."""
        rows = {row["h"]: row for row in result["locks"]}
        for part in self.held:
            part.mark_granted(rows[part.serial])

    def withdraw(self, future: Future[Any] | None) -> None:
        """The caller has gone; a grant that raced is released as a whole (API-R8)."""
        for part in self.held:
            part.mark_withdrawn()
        session, unlock = self._session, {"locks": [{"h": part.serial} for part in self.held]}
        if future is None or not future.done():
            session.post("cancel", {"h": self.serial})
        if future is None:  # interrupted while sending: the daemon may or may not know the request
            session.post("unlock_all", unlock)
            return

        def release_if_granted(done: Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                session.post("unlock_all", unlock)

        future.add_done_callback(release_if_granted)


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
        asked = _Asked(session, self.names)
        args = {
            "h": asked.serial,
            "locks": asked.locks,
            "noqueue": timeout == 0,
            "no_quorum": "fail" if timeout == 0 else self._no_quorum,
            "space": session.space,
            "valblk": True,
            **session.identity(self._xid),
            **session.limit(timeout),
        }
        future = None
        try:
            future = session.start("lock_all", args)
            result, late = session.outcome(future, asked, timeout)
            if late and timeout is not None:
                raise session.too_late(asked.name, timeout)
            with session.changed:
                asked.granted(result)
            for part in asked.held:
                session.settle(part, limit)
        except BaseException:
            asked.withdraw(future)
            raise
        if self._on_lost is not None:
            self._client.watch.add(asked.held, self._on_lost)
        return asked.held

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
        asked = _merged(names, Mode(mode))
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


def _merged(names: Iterable[NameAndMode], default: Mode) -> dict[bytes, Mode]:
    """The names in their order, each once, with the mode it needs."""
    found: dict[bytes, Mode] = {}
    for name, mode in _pairs(names, default):
        found[name] = _including(found.get(name, mode), mode)
    if not found:
        raise InvalidRequest("which locks? At least one name is needed")
    return found


def _pairs(names: Iterable[NameAndMode], default: Mode) -> Iterator[tuple[bytes, Mode]]:
    for each in names:
        if isinstance(each, tuple):
            name, mode = each
            yield answers.name_bytes(name), Mode(mode)
        else:
            yield answers.name_bytes(each), default


def _including(a: Mode, b: Mode) -> Mode:
    """The weakest mode that excludes all that ``a`` and ``b`` exclude. The modes form a chain but for CW and PR."""
    if {a, b} == {Mode.CW, Mode.PR}:
        return Mode.PW
    return max(a, b)


def _label(names: Iterable[bytes]) -> bytes:
    return b" + ".join(names)
