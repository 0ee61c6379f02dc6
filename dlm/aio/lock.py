"""A name with a mode and a time-out: what ``async with`` takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from dlm import answers
from dlm.aio.cancel import CancelOnLost, leave
from dlm.aio.held import AsyncHeld
from dlm.info import Holder, Mode
from dlm.recipes.entered import Entered
from dlm.session_base import checked_timeout

if TYPE_CHECKING:
    from dlm.aio.client import AsyncClient

__all__ = ["AsyncLock"]


class AsyncLock:
    """A lock to be taken. Reusable, also by several tasks (API-R2). Not reentrant."""

    def __init__(
        self,
        client: AsyncClient,
        name: bytes,
        mode: Mode,
        timeout: float | None,
        no_quorum: Literal["wait", "fail"],
        on_lost: Callable[[AsyncHeld, str], object] | None,
        cancel_on_lost: bool,
        xid: int | None,
    ) -> None:
        self.name = name
        self.mode = mode
        self.timeout = checked_timeout(timeout)
        self._client = client
        self._no_quorum: Literal["wait", "fail"] = no_quorum
        self._on_lost = on_lost
        self._cancel_on_lost = cancel_on_lost
        self._xid = xid
        self._entered: Entered[tuple[AsyncHeld, CancelOnLost | None]] = Entered(asyncio.current_task)

    async def acquire(self) -> AsyncHeld:
        """Take it, without ``async with``, and so without ``cancel_on_lost``; see ``AsyncClient.acquire``."""
        return await self._client.acquire(
            self.name, self.mode, self.timeout, no_quorum=self._no_quorum, on_lost=self._on_lost, xid=self._xid
        )

    async def holders(self) -> tuple[Holder, ...] | None:
        """See ``AsyncClient.holders``."""
        return await self._client.holders(self.name)

    async def contenders(self) -> tuple[Holder, ...] | None:
        """Who waits, in the order in which they will be served: conversions first (API-R13)."""
        return await self._client.contenders(self.name)

    async def __aenter__(self) -> AsyncHeld:
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
        return f"<dlm.AsyncLock {answers.name_text(self.name)!r} {self.mode.name} timeout={self.timeout}>"
