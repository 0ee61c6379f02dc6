"""A session with a node as tasks of an event loop use it: waiting with a way out, and the task as the owner.

Not thread-safe: everything is used in the loop in which the session was made.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from dlm.aio.watch import Watch, Watched
from dlm.errors import LockCancelled, NotConnected, NotHeld
from dlm.grant import Grant
from dlm.info import LockInfo
from dlm.session_base import (
    CANCEL_GRACE_S,
    HOME_MARGIN_S,
    SETTLE_POLL_S,
    TRY_PATIENCE_S,
    Asked,
    SessionBase,
    unwritten,
)
from vsync.ipc import Channel

if TYPE_CHECKING:
    from dlm.aio.doorbell import AsyncDoorbells

__all__ = ["AsyncChannel", "AsyncSession", "Part"]

FLUSH_S = 1.0  #: a daemon that does not read what was released by then is left alone with it


class AsyncChannel(Channel, Protocol):
    """A channel whose handlers and callbacks run in the event loop that uses it: ``vsync.aio.LoopChannel``."""

    async def flushed(self, timeout: float) -> bool:
        """Wait until the node can read what was sent."""
        ...


class _Changed:
    """In an event loop nobody else changes anything meanwhile: there is only somebody to be told."""

    def __init__(self) -> None:
        self.tell: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def notify_all(self) -> None:
        self.tell()


class AsyncSession(SessionBase):
    """Everything the handles of one channel have in common, and how tasks wait for them."""

    channel: AsyncChannel

    def __init__(self, channel: AsyncChannel, space: str, clock_us: Callable[[], int]) -> None:
        self.loop = asyncio.get_running_loop()
        self._owners = itertools.count(1)
        self._tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()
        self.doorbells: AsyncDoorbells | None = None  #: of the recipes; see ``bells_of``
        changed = _Changed()
        super().__init__(channel, space, clock_us, changed)
        self.watch = Watch(self)
        changed.tell = self.watch.notice

    def check_loop(self) -> None:
        """Raise ``RuntimeError`` in another event loop, or another thread, than that of the session, and
        ``ForkedProcess`` in a child.
        """
        self.check_process()
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("a dlm.AsyncClient and its locks are used in the event loop that opened it")

    def owner(self) -> int:
        """The number of the running task within this session, as owner of the locks it asks for (API-R7)."""
        task = asyncio.current_task()
        if task is None:
            return next(self._owners)  # a callback: it has nothing else, and will not wait again
        number = self._tasks.get(task)
        if number is None:
            number = self._tasks[task] = next(self._owners)
        return number

    # -- requests

    async def call(self, verb: str, args: Mapping[str, Any], name: bytes = b"") -> Any:
        """Send a request and wait for its answer. Raises what ``result`` raises."""
        self.check_loop()
        future = self.start(verb, args)
        await self.done(future)
        return self.result(future, name)

    async def done(self, future: Future[Any], timeout: float | None = None) -> bool:
        """Wait until there is an answer, at most ``timeout`` seconds; whether there is. Cancelling the waiting task
        leaves the request alone.
        """
        await self.any_done((future,), timeout)
        return future.done()

    async def any_done(self, futures: Sequence[Future[Any]], timeout: float | None = None) -> None:
        """Wait until one of them is done, at most ``timeout`` seconds."""
        if not any(future.done() for future in futures):
            waiter: asyncio.Future[None] = self.loop.create_future()
            for future in futures:
                future.add_done_callback(lambda _: _wake(waiter))
            await self.pause(waiter, timeout)

    async def pause(self, waiter: asyncio.Future[Any], timeout: float | None) -> None:
        """Wait for ``waiter``, or for ``timeout`` seconds."""
        timer = None if timeout is None else self.loop.call_later(timeout, _wake, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()

    async def outcome(self, future: Future[Any], asked: Asked, timeout: float | None) -> tuple[Any, bool]:
        """The answer of a lock or convert request, and whether it came too late: as ``Session.outcome``."""
        if timeout is None:
            await self.done(future)
            return self.result(future, asked.name), False
        if await self.done(future, timeout + HOME_MARGIN_S if timeout > 0 else TRY_PATIENCE_S):
            return self.result(future, asked.name, timeout), False
        self.post("cancel", {"h": asked.serial})
        if not await self.done(future, CANCEL_GRACE_S):
            raise self.too_late(asked.name, timeout)
        try:
            return self.result(future, asked.name, timeout), True
        except LockCancelled:
            raise self.too_late(asked.name, timeout) from None

    def unlocked(
        self, args: Mapping[str, Any], after: Future[None] | None, name: bytes, verb: str = "unlock"
    ) -> Future[None]:
        """Release, when ``after`` is done, and now if there is nothing to wait for. The future is done when the
        node has answered, whatever it says: the lock is free of us. It has an exception only if a value block may
        not have been written.
        """
        freed: Future[None] = Future()

        def answered(answer: Future[Any] | None) -> None:
            failed = answer is None or answer.cancelled() or answer.exception() is not None
            error = unwritten(args, name) if failed else None
            if error is not None:
                freed.set_exception(error)
            else:
                freed.set_result(None)

        def release(_: object) -> None:
            try:
                self.start(verb, args).add_done_callback(answered)
            except NotConnected:
                answered(None)  # the session's end has released everything

        if after is None:
            release(None)
        else:
            after.add_done_callback(release)
        return freed

    # -- waiting for more than an answer

    async def settle(self, grant: Grant, limit: float | None) -> None:
        """Return when a fresh grant is backed by the lease of its generation (``limit``: monotonic seconds).

        Raises ``LockLost``, ``LockTimeout``.
        """
        while self.unsettled(grant, limit):
            await asyncio.sleep(SETTLE_POLL_S)

    async def over(self, held: Watched, timeout: float | None = None) -> bool:
        """Wait until ``held`` is lost or released, at most ``timeout`` seconds; whether it is."""
        if held.loss_now() is None and not held.released:
            waiter: asyncio.Future[None] = self.loop.create_future()
            entry = self.watch.add(held, lambda _: _wake(waiter))
            try:
                await self.pause(waiter, timeout)
            finally:
                self.watch.remove(entry)
        return held.loss_now() is not None or held.released

    # -- what clients of all kinds ask

    async def purge(self, node: int | None, pid: int) -> int | None:
        """See ``AsyncClient.purge``."""
        where = {} if node is None else {"node": node}
        purged: int | None = (await self.call("purge", {"pid": pid, **where}))["purged"]
        return purged

    async def show(self, name: bytes, space: str) -> LockInfo | None:
        """See ``AsyncClient.show``."""
        try:
            return LockInfo.from_row(await self.call("show", {"name": name, "space": space}, name))
        except NotHeld:
            return None

    # -- the end

    async def aclose(self) -> None:
        """End all handles, let the node have what was sent, then end the channel (pitfalls D10)."""
        self.end_all("session_closed")
        try:
            await self.channel.flushed(FLUSH_S)
        finally:
            self.channel.close()


class Part:
    """A part of ``AsyncClient``: what it needs of the whole."""

    @property
    def session(self) -> AsyncSession:
        """That of the client. Raises ``NotConnected`` before it is open."""
        raise NotImplementedError


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
