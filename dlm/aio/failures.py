"""The part of ``AsyncClient`` that is about failures of nodes; see docs/failures.md."""

from __future__ import annotations

import asyncio

from dlm.aio.session import AsyncSession, Part
from dlm.client_failures import recovered_args
from dlm.errors import NotConnected
from dlm.recoveries import FailureInfo, Recovery

__all__ = ["AsyncFailures"]

LOOK_S = 1.0  #: how often a waiter looks whether the session has ended


class AsyncFailures(Part):
    """Everything is as in ``Client``."""

    async def failures(self) -> list[FailureInfo]:
        """All failures that grants wait for; see ``Client.failures``."""
        return [FailureInfo.from_row(row) for row in await self.session.call("failures", {})]

    async def recoveries(self) -> list[Recovery]:
        """What has to be recovered from; see ``Client.recoveries``."""
        rows = await self.session.call("recoveries", {"space": self.session.space})
        return [Recovery.from_row(row) for row in rows]

    async def next_recovery(self) -> Recovery:
        """Wait for a failure to recover from; see ``Client.next_recovery``. ``asyncio.timeout`` bounds it."""
        session = self.session
        await session.call("recover_watch", {"space": session.space})
        while (row := session.take_recovery()) is None:
            if session.closed:
                raise NotConnected(f"the session has ended: {session.closed}")
            await _told(session)
        return Recovery.from_row(row)

    async def recovered(self, what: Recovery | int) -> None:
        """The application has recovered; see ``Client.recovered``."""
        await self.session.call("recovered", recovered_args(self.session.space, what))


async def _told(session: AsyncSession) -> None:
    """Until something is pushed, or it is time to look."""
    waiter: asyncio.Future[None] = session.loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    session.on_recovery.append(wake)
    timer = session.loop.call_later(LOOK_S, wake)
    try:
        await waiter
    finally:
        timer.cancel()
        session.on_recovery.remove(wake)
