"""The way in for asyncio: ``dlm.AsyncClient()``, over a daemon or a node in this process.

::

    async with dlm.AsyncClient() as locks:
        async with locks.lock("reports/nightly", timeout=10, cancel_on_lost=True) as held:
            await publish(fence=held.fence)

What ``dlm.client`` says holds here: a body is entered holding the lock or not at all, and a lock lasts as long as
its session, its node and the primary component. No thread waits for anything: the session lives in the event loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

from dlm import answers
from dlm.aio.election import AsyncElection
from dlm.aio.failures import AsyncFailures
from dlm.aio.held import AsyncHeld
from dlm.aio.lock import AsyncLock
from dlm.aio.looking import AsyncLooking
from dlm.aio.semaphore import AsyncSemaphore
from dlm.aio.session import AsyncChannel, AsyncSession
from dlm.aio.spaces import AsyncSpaces, open_space
from dlm.aio.together import AsyncTogether
from dlm.asking import lock_args, requested, taken_back
from dlm.errors import ConfigError, LockTimeout, NotConnected
from dlm.info import Flag, Mode
from dlm.session_base import checked_timeout
from dlm.transaction import Transaction
from vsync import errors as vsync_errors
from vsync.clock import boot_us

if TYPE_CHECKING:
    from typing import Self

__all__ = ["AsyncClient", "HasAsyncChannel"]

OnLost = Callable[[AsyncHeld, str], object]
OnBlocking = Callable[[AsyncHeld, Mode], object]
WhenNoQuorum = Literal["wait", "fail"]
NO_FLAGS = Flag(0)


class HasAsyncChannel(Protocol):
    """A ``vsync.Node``, as far as it matters here."""

    async def async_channel(self) -> AsyncChannel:
        """A new local session with the node, for the running event loop."""
        ...


class AsyncClient(AsyncLooking, AsyncSpaces, AsyncFailures, AsyncTogether):
    """A session with a node, and the locks it takes, for the tasks of one event loop. Not usable in another loop or
    thread, nor after ``fork`` (API-R9).

    ``async with`` opens and closes it; closing gives back everything that is still held, without asking.
    """

    def __init__(
        self,
        url: str | HasAsyncChannel | None = None,
        *,
        space: str = "default",
        create: bool = True,
        name: str | None = None,
    ) -> None:
        """Nothing happens yet. ``url`` is ``unix:///path`` or a path, default ``$VSYNC_URL``, else that of the
        system; or a ``vsync.Node`` in this process. ``space``, ``create`` and ``name`` as for ``dlm.connect``.
        """
        self._where = url
        self._program = name
        self._space = space
        self._create = create
        self._channel: AsyncChannel | None = None
        self._clock_us: Callable[[], int] = boot_us
        self._opened: AsyncSession | None = None

    @classmethod
    def over(
        cls,
        channel: AsyncChannel,
        *,
        space: str = "default",
        create: bool = True,
        clock_us: Callable[[], int] = boot_us,
    ) -> Self:
        """Over any channel of the running loop. ``clock_us`` is the clock of the lease, in microseconds."""
        self = cls(space=space, create=create)
        self._channel = channel
        self._clock_us = clock_us
        return self

    # -- the session

    async def open(self) -> Self:
        """What ``async with`` does at its beginning.

        Raises ``NotConnected`` naming the URL, ``ConfigError`` for a URL that is none, and for a lockspace what
        ``dlm.connect`` does. Once only.
        """
        if self._opened is not None:
            raise RuntimeError(f"{self!r} was opened before; make another one")
        channel = self._channel if self._channel is not None else await self._connect()
        session = self._opened = AsyncSession(channel, self._space, self._clock_us)
        try:
            waits: WhenNoQuorum = "wait" if self._create else "fail"
            session.value_limit = await open_space(session, self._space, self._create, waits)
        except BaseException:
            session.close()
            raise
        return self

    async def _connect(self) -> AsyncChannel:
        from vsync import aio, ipc

        where = self._where
        node = None if where is None or isinstance(where, str) else where
        url = where if isinstance(where, str) else os.environ.get("VSYNC_URL") or ipc.DEFAULT_URL
        try:
            if node is not None:
                return await node.async_channel()
            return await aio.connect(url, self._program)
        except vsync_errors.NotConnected as error:
            raise NotConnected(str(error), url=None if node is not None else url) from error
        except vsync_errors.ConfigError as error:
            raise ConfigError(str(error)) from error

    @property
    def session(self) -> AsyncSession:
        """What this client shares with the rest of this package. Raises ``NotConnected`` before ``open``."""
        if self._opened is None:
            raise NotConnected("this client is not open: async with dlm.AsyncClient() as locks")
        return self._opened

    @property
    def closed(self) -> bool:
        """Whether the session has ended, by ``close`` or because the daemon has gone."""
        return self._opened is not None and self._opened.closed is not None

    async def close(self) -> None:
        """End the session; handles still held count as lost (``session_closed``) from now on. Idempotent.

        Of a client that ``space`` gave: give back what the session has in that lockspace (``space_closed``).
        """
        if self._opened is None:
            return
        self._opened.check_process()
        if self._root:
            await self._opened.aclose()
        else:
            self._opened.close_space()

    async def __aenter__(self) -> Self:
        return self if self._opened is not None and self._opened.closed is None else await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- taking locks

    def lock(
        self,
        name: str | bytes,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        *,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        cancel_on_lost: bool = False,
        xid: int | None = None,
    ) -> AsyncLock:
        """A reusable description of a lock, taken by ``async with``. Arguments as for ``acquire``.

        With ``cancel_on_lost`` the task in the body is cancelled when the lock is lost or suspended, and the body
        ends with ``LockLost``, in the style of ``asyncio.timeout()``.
        """
        key = answers.name_bytes(name)
        return AsyncLock(self, key, Mode(mode), timeout, no_quorum, on_lost, cancel_on_lost, xid)

    def exclusive(
        self, name: str | bytes, timeout: float | None = None, *, cancel_on_lost: bool = False
    ) -> AsyncLock:
        """``lock(name, Mode.EX)``."""
        return self.lock(name, Mode.EX, timeout, cancel_on_lost=cancel_on_lost)

    def shared(
        self, name: str | bytes, timeout: float | None = None, *, cancel_on_lost: bool = False
    ) -> AsyncLock:
        """``lock(name, Mode.PR)``: shared with other readers."""
        return self.lock(name, Mode.PR, timeout, cancel_on_lost=cancel_on_lost)

    async def acquire(
        self,
        name: str | bytes,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        *,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        on_blocking: OnBlocking | None = None,
        flags: Flag = NO_FLAGS,
        xid: int | None = None,
    ) -> AsyncHeld:
        """Take a lock; arguments and exceptions are those of ``Client.acquire``.

        A task that is cancelled withdraws the request, and a grant that raced is released: nothing stays in the
        queue (API-R8). ``on_lost(held, reason)`` and ``on_blocking(held, mode)`` are called in the event loop, and
        may be coroutine functions. For the detection of deadlocks the lock belongs to the running task, or to the
        transaction that it is in.
        """
        key, timeout = answers.name_bytes(name), checked_timeout(timeout)
        limit = None if timeout is None else time.monotonic() + timeout
        session = self.session
        session.check_loop()
        answers.check_friendly(flags)
        held = AsyncHeld(session, key, Mode(mode))
        held.tells = on_blocking is not None
        args = lock_args(session, held, flags, timeout, no_quorum, xid)
        with requested(session, "lock", args, taken_back(session, held)) as future:
            result, late = await session.outcome(future, held, timeout)
            if late and timeout is not None:
                raise session.too_late(key, timeout)
            held.mark_granted(result)
            await session.settle(held, limit)
        if on_lost is not None or on_blocking is not None:
            held.tell(on_lost, on_blocking)
        return held

    async def try_lock(
        self, name: str | bytes, mode: Mode = Mode.EX, *, on_lost: OnLost | None = None
    ) -> AsyncHeld | None:
        """Take a lock if that needs no waiting for other holders, else ``None``. Raises ``NoQuorum`` and
        the like.
        """
        try:
            return await self.acquire(name, mode, 0, on_lost=on_lost)
        except LockTimeout:
            return None

    def transaction(self, xid: int | None = None) -> Transaction:
        """``with client.transaction() as tx:`` makes the locks that this task, and tasks that it starts inside, ask
        for belong to one owner, ``tx.xid``: 63 random bits, or the ``xid`` of another process that takes part.
        """
        return Transaction(self.session.root, xid)

    # -- recipes

    def semaphore(
        self, name: str | bytes, permits: int, timeout: float | None = None, *, cancel_on_lost: bool = False
    ) -> AsyncSemaphore:
        """``permits`` permits in the whole cluster, first come, first served."""
        return AsyncSemaphore(self, name, permits, timeout, cancel_on_lost)

    def election(self, name: str | bytes, identity: str | None = None) -> AsyncElection:
        """A candidate for ``name``, or an observer."""
        return AsyncElection(self, name, identity)

    def __repr__(self) -> str:
        if self._opened is None:
            return "<dlm.AsyncClient not open>"
        welcome = self._opened.channel.welcome
        node = welcome.get("node", {}).get("name", "?")
        state = self._opened.closed or "open"
        where = "" if self.space_name == "default" else f" in lockspace {self.space_name!r}"
        return f"<dlm.AsyncClient session {welcome.get('session', '?')} at node {node}{where}, {state}>"
