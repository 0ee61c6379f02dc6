"""Several locks at once, for tasks of an event loop; see ``dlm.together``.

::

    async with locks.all("acct/1", "acct/2", timeout=5) as held:
        await transfer(fences=held.fences)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from dlm import answers
from dlm.aio.cancel import CancelOnLost, leave
from dlm.aio.held import AsyncHeld, AsyncLoss
from dlm.aio.session import AsyncSession, Part
from dlm.asking import requested
from dlm.errors import LockLost, LockTimeout
from dlm.grants import AskedAll, Grants, NameAndMode, merged, numbered
from dlm.info import Mode
from dlm.recipes.entered import Entered
from dlm.session_base import checked_timeout

if TYPE_CHECKING:
    from typing import Self

__all__ = ["AsyncHeldAll", "AsyncLockAll", "AsyncTogether"]

OnLost = Callable[["AsyncHeldAll", str], object]
WhenNoQuorum = Literal["wait", "fail"]


class AsyncHeldAll(Grants[AsyncHeld]):
    """All locks of one ``all``, in the order in which they were named; each is an ``AsyncHeld`` of its own, too.

    ``held["acct/1"]`` is the one with this name. ``async with`` releases at the end what is still held of it.
    """

    _session: AsyncSession

    def __init__(self, session: AsyncSession, parts: Sequence[AsyncHeld]) -> None:
        super().__init__(session, parts)
        self.lost = AsyncLoss(self)  #: set when one of them is lost

    async def wait_lost(self, timeout: float | None) -> bool:
        """See ``AsyncLoss.wait``."""
        await self._session.over(self, timeout)
        return self.loss_now() is not None

    def cancel_on_lost(self) -> CancelOnLost:
        """As ``AsyncHeld.cancel_on_lost``, when one of them is lost."""
        return CancelOnLost(self._session, self)

    def release(self, wait: bool = False, *, invalidate: bool = False) -> Coroutine[Any, Any, None]:
        """Give back all that are not released yet, together: when this is called, as ``AsyncHeld.release``.

        Raises ``NotHeld`` if all were released before, and, when awaited, ``LockLost`` if one was not held for
        certain any more.
        """
        session = self._session
        session.check_loop()
        lost, rows, converting = self._end_all(invalidate)
        name = self.names[0]
        requests = self._unlocks(rows)
        freed: list[Future[None]] = [session.unlocked(args, None, name, "unlock_all") for args in requests]
        for part in converting:  # its conversion has to be withdrawn first
            _, args, conversion = part._end(invalidate)
            freed.append(session.unlocked(args, conversion, part.name))
        return self._over(freed if wait else [], lost)

    async def _over(self, freed: list[Future[None]], lost: LockLost | None) -> None:
        for one in freed:
            await self._session.done(one)
        if lost is not None:
            raise lost
        for one in freed:
            one.result()

    # -- with

    async def __aenter__(self) -> Self:
        for part in self:
            await part.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await leave(self, None, error)


class AsyncLockAll:
    """Several names with their modes and a time-out: what ``async with`` takes. Reusable, also by several tasks."""

    def __init__(
        self,
        client: AsyncTogether,
        names: dict[bytes, Mode],
        timeout: float | None,
        no_quorum: WhenNoQuorum,
        on_lost: OnLost | None,
        cancel_on_lost: bool,
        xid: int | None,
    ) -> None:
        self.names = names  #: the mode of each
        self.timeout = checked_timeout(timeout)
        self._client = client
        self._no_quorum: WhenNoQuorum = no_quorum
        self._on_lost = on_lost
        self._cancel_on_lost = cancel_on_lost
        self._xid = xid
        self._entered: Entered[tuple[AsyncHeldAll, CancelOnLost | None]] = Entered(asyncio.current_task)

    async def acquire(self) -> AsyncHeldAll:
        """Take them, without ``async with``; see ``AsyncClient.acquire_all``."""
        session, timeout = self._client.session, self.timeout
        limit = None if timeout is None else time.monotonic() + timeout
        session.check_loop()
        numbers = numbered(session, self.names)
        parts = [AsyncHeld(session, name, mode, numbers[name]) for name, mode in self.names.items()]
        held = AsyncHeldAll(session, parts)
        asked = AskedAll(session, held)
        args = asked.args(timeout, self._no_quorum, self._xid)
        with requested(session, "lock_all", args, asked.withdraw) as future:
            result, late = await session.outcome(future, asked, timeout)
            if late and timeout is not None:
                raise session.too_late(asked.name, timeout)
            asked.granted(result)
            for part in held:
                await session.settle(part, limit)
        on_lost = self._on_lost
        if on_lost is not None:
            session.watch.add(held, lambda reason: None if reason is None else on_lost(held, reason))
        return held

    async def __aenter__(self) -> AsyncHeldAll:
        held = await self.acquire()
        guard = held.cancel_on_lost() if self._cancel_on_lost else None
        if guard is not None:
            guard.start()
        self._entered.push((held, guard))
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held, guard = self._entered.pop()
        await leave(held, guard, error)

    def __repr__(self) -> str:
        names = ", ".join(f"{answers.name_text(name)!r} {mode.name}" for name, mode in self.names.items())
        return f"<dlm.AsyncLockAll {names} timeout={self.timeout}>"


class AsyncTogether(Part):
    """The part of ``AsyncClient`` that is about several locks at once."""

    def all(
        self,
        *names: NameAndMode,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        cancel_on_lost: bool = False,
        xid: int | None = None,
    ) -> AsyncLockAll:
        """A reusable description of several locks, taken by ``async with`` at one moment, or not at all.

        Arguments are as for ``Client.all``; ``cancel_on_lost`` as for ``lock``, when one of them is lost.
        """
        asked = merged(names, Mode(mode))
        return AsyncLockAll(self, asked, timeout, no_quorum, on_lost, cancel_on_lost, xid)

    async def acquire_all(
        self,
        *names: NameAndMode,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        xid: int | None = None,
    ) -> AsyncHeldAll:
        """Take all of these locks at one moment, or none; arguments as for ``all``. A task that is cancelled leaves
        nothing behind in any queue (API-R8).

        Raises what ``acquire`` raises; ``name`` of the exception is then all of the names.
        """
        lock = self.all(*names, mode=mode, timeout=timeout, no_quorum=no_quorum, on_lost=on_lost, xid=xid)
        return await lock.acquire()

    async def try_all(
        self, *names: NameAndMode, mode: Mode = Mode.EX, on_lost: OnLost | None = None
    ) -> AsyncHeldAll | None:
        """Take all of these locks if none needs waiting for other holders, else ``None``."""
        try:
            return await self.acquire_all(*names, mode=mode, timeout=0, on_lost=on_lost)
        except LockTimeout:
            return None
