"""A lock that is held, for tasks of an event loop. What it is says ``dlm.grant``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from dlm.aio.cancel import CancelOnLost, leave
from dlm.errors import LockLost
from dlm.grant import Grant, LossBase
from dlm.info import Flag, Mode

if TYPE_CHECKING:
    from typing import Self

    from dlm.aio.session import AsyncSession

__all__ = ["AsyncHeld", "AsyncLoss"]

POLL_S = 0.05  #: a lease that comes back is written to the page, and no push need follow


class _Losable(Protocol):
    @property
    def released(self) -> bool: ...

    def loss_now(self) -> str | None: ...

    async def wait_lost(self, timeout: float | None) -> bool: ...


class AsyncLoss(LossBase):
    """Whether a handle has been lost: like ``asyncio.Event``, with a ``reason``; and ``await held.lost``.

    It is set as well while the lease has run out (reason ``lease``), and that alone can pass again.
    """

    _held: _Losable

    def __init__(self, held: _Losable) -> None:
        super().__init__(held)

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the lock is lost (``True``) or has been released or ``timeout`` seconds are over."""
        return await self._held.wait_lost(timeout)

    def __await__(self) -> Generator[Any, None, str | None]:
        """Wait until the lock is lost, and give the reason; ``None`` when it has been released."""
        return self._reason().__await__()

    async def _reason(self) -> str | None:
        await self._held.wait_lost(None)
        return self.reason


class AsyncHeld(Grant):
    """One grant of one lock. Made by ``AsyncClient``, never reusable; owned by no task (API-R7), used in one event
    loop. ``async with`` releases it at the end.
    """

    _session: AsyncSession

    def __init__(self, session: AsyncSession, name: bytes, mode: Mode, serial: int | None = None) -> None:
        super().__init__(session, name, mode, serial)
        self.lost = AsyncLoss(self)

    # -- is it still held?

    async def wait_lost(self, timeout: float | None) -> bool:
        """See ``AsyncLoss.wait``."""
        await self._session.over(self, timeout)
        return self.loss_now() is not None

    async def wait_valid(self, timeout: float | None = None) -> bool:
        """Wait while the lock is suspended: ``True`` as soon as it is held for certain, with the fence it had;
        ``False`` after ``timeout`` seconds.

        Raises ``LockLost`` when it is lost for good, ``NotHeld`` when it has been released.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        while self.still_suspended():
            rest = POLL_S if limit is None else min(limit - time.monotonic(), POLL_S)
            if rest <= 0:
                return False
            await asyncio.sleep(rest)
        return True

    def cancel_on_lost(self) -> CancelOnLost:
        """``async with held.cancel_on_lost():`` cancels the task in the body when the lock is lost or suspended;
        then the body ends with ``LockLost``. In the style of ``asyncio.timeout()``.
        """
        return CancelOnLost(self._session, self)

    def tell(
        self,
        on_lost: Callable[[Self, str], object] | None,
        on_blocking: Callable[[Self, Mode], object] | None,
    ) -> None:
        """Call these in the event loop, once and as often as it happens; what they give is awaited if it can be."""
        end = None if on_lost is None else lambda reason: None if reason is None else on_lost(self, reason)
        block = None if on_blocking is None else lambda mode: on_blocking(self, mode)
        self._session.watch.add(self, end, block)

    # -- changing it

    async def convert(
        self,
        mode: Mode,
        timeout: float | None = None,
        *,
        value: bytes | None = None,
        invalidate: bool = False,
        flags: Flag = Flag(0),  # noqa: B008 - immutable
    ) -> None:
        """Change the mode; see ``Held.convert``. A task that is cancelled withdraws the conversion: the handle
        keeps the old mode, or learns later that the new one came first.
        """
        self._session.check_loop()
        with self._convert(mode, timeout, value, invalidate, flags) as answer:
            await self._session.outcome(answer, self, timeout)

    def release(self, wait: bool = False, *, invalidate: bool = False) -> Coroutine[Any, Any, None]:
        """Give the lock back: it ends, and the message is sent, when this is *called*. So nothing that happens to
        the task can keep it (API-R8). What is awaited is, with ``wait``, that the lock is free.

        Raises ``NotHeld`` the second time, and, when awaited, ``LockLost`` if the lock was not held for certain any
        more. Otherwise as ``Held.release``.
        """
        if wait:
            return self._over(*self.give_back(invalidate))
        self._session.check_loop()
        lost, args, converting = self._end(invalidate)
        self._unlock(args, converting)
        return self._over(lost, None)

    def give_back(self, invalidate: bool = False) -> tuple[LockLost | None, Future[None]]:
        """As ``release``, for those who do not wait in a task: the loss, and what is done when the lock is free."""
        self._session.check_loop()
        lost, args, converting = self._end(invalidate)
        return lost, self._session.unlocked(args, converting, self.name)

    async def _over(self, lost: LockLost | None, freed: Future[None] | None) -> None:
        if freed is not None:
            await self._session.done(freed)
        if lost is not None:
            raise lost
        if freed is not None:
            freed.result()

    # -- with

    async def __aenter__(self) -> Self:
        self._require_unreleased()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await leave(self, None, error)
