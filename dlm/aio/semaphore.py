"""A semaphore for tasks of an event loop. What it is, and how it is made, says ``dlm.recipes.semaphore``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlm.aio.asked import AsyncAsked, ask, drop, first_of
from dlm.aio.cancel import CancelOnLost, leave
from dlm.aio.held import AsyncHeld, AsyncLoss
from dlm.errors import LockLost, LockTimeout, NotHeld
from dlm.info import Flag, LockInfo, Mode
from dlm.recipes.deadline import Deadline
from dlm.recipes.entered import Entered
from dlm.recipes.semaphore import PermitBase, SemaphoreBase, taken
from dlm.session_base import TRY_PATIENCE_S

if TYPE_CHECKING:
    from typing import Self

    from dlm.aio.client import AsyncClient

__all__ = ["AsyncPermit", "AsyncSemaphore"]


class AsyncPermit(PermitBase[AsyncHeld]):
    """One permit that is held. Made by ``AsyncSemaphore``; ``async with`` releases it at the end."""

    @property
    def lost(self) -> AsyncLoss:
        """Whether the permit has been lost; can be awaited."""
        return self.held.lost

    def cancel_on_lost(self) -> CancelOnLost:
        """See ``AsyncHeld.cancel_on_lost``."""
        return self.held.cancel_on_lost()

    def release(self, wait: bool = False) -> Coroutine[Any, Any, None]:
        """Give the permit back, when this is called; awaited, with ``wait``, it is free. Raises ``NotHeld`` the
        second time, and, when awaited, ``LockLost`` if it was not held for certain any more.
        """
        over = self.held.release(wait)
        drop(self._gate)
        return over

    async def __aenter__(self) -> Self:
        await self.held.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await leave(self, None, error)


class AsyncSemaphore(SemaphoreBase):
    """``permits`` permits under ``name`` (at most 51 bytes). Reusable, also by several tasks (API-R2).

    ``async with semaphore as permit:`` is entered with a permit or not at all (API-R1); with ``cancel_on_lost`` the
    task in the body is cancelled when the permit is lost. Otherwise as ``Semaphore``, and the same one: threads,
    tasks and processes share the permits of a name.
    """

    def __init__(
        self,
        client: AsyncClient,
        name: str | bytes,
        permits: int,
        timeout: float | None = None,
        cancel_on_lost: bool = False,
    ) -> None:
        """``timeout`` is what ``async with`` waits, in seconds (API-R3). Raises ``InvalidRequest``."""
        super().__init__(name, permits, timeout)
        self._client = client
        self._cancel_on_lost = cancel_on_lost
        self._entered: Entered[tuple[AsyncPermit, CancelOnLost | None]] = Entered(asyncio.current_task)

    async def acquire(self, timeout: float | None = None) -> AsyncPermit:
        """A permit, in the order of the cluster; arguments and exceptions are those of ``Semaphore.acquire``. A
        task that is cancelled leaves nothing behind (API-R8).
        """
        deadline = Deadline(timeout)
        if timeout == 0:
            return await self._try(deadline)
        gate = await self._client.acquire(self._gate, Mode.EX, timeout)
        try:
            self._agree(gate)
            found = await self._find(deadline, thorough=False) or await self._wait(deadline)
            return await self._permit(*found, gate, deadline)
        except BaseException:
            drop(gate)
            raise

    async def try_acquire(self) -> AsyncPermit | None:
        """A permit if one is free, else ``None``. Raises as ``acquire``, but for ``LockTimeout``."""
        try:
            return await self.acquire(0)
        except LockTimeout:
            return None

    async def holders(self) -> list[LockInfo]:
        """The permits that are in use, as this node knows them: one row each, its name ends in the number."""
        return [info for info in await self._look() if info is not None and taken(info)]

    # -- finding a permit

    async def _try(self, deadline: Deadline) -> AsyncPermit:
        gate = await self._client.acquire(self._gate, Mode.NL, 0, flags=Flag.EXPEDITE)
        try:
            if not self._agree(gate):
                await gate.convert(Mode.EX, 0)  # refused: at this moment another makes the first use
                self._agree(gate)
            found = await self._find(deadline, thorough=True)
            if found is None:
                raise self._none_free()
            return await self._permit(*found, gate, deadline)
        except BaseException:
            drop(gate)
            raise

    async def _look(self) -> list[LockInfo | None]:
        """What this node knows of each permit; ``ls`` would go through all names there are."""
        session = self._client.session
        asked = [session.start("show", {"name": slot, "space": session.space}) for slot in self._slots]
        found: list[LockInfo | None] = []
        for slot, future in zip(self._slots, asked, strict=True):
            await session.done(future)
            try:
                found.append(LockInfo.from_row(session.result(future, slot)))
            except NotHeld:
                found.append(None)
        return found

    async def _find(self, deadline: Deadline, thorough: bool) -> tuple[int, AsyncHeld] | None:
        """Try one after the other, the one had last first, then those that look free; ``thorough``: also those that
        look taken.
        """
        held = await self._attempt(self._last, deadline)
        if held is not None:
            return self._last, held
        for number, looks_taken in self._rest(await self._look()):
            if looks_taken and not thorough:
                break
            held = await self._attempt(number, deadline)
            if held is not None:
                return number, held
        return None

    async def _attempt(self, number: int, deadline: Deadline) -> AsyncHeld | None:
        session, at_once = self._client.session, deadline.timeout == 0
        alone = "fail" if at_once else "wait"
        asked = ask(session, self._slots[number], Mode.EX, Flag.NOQUEUE, no_quorum=alone, apart=True)
        try:
            if await first_of(session, [asked], Deadline(TRY_PATIENCE_S) if at_once else deadline) is None:
                raise self._too_late(deadline.timeout)
            return await asked.take(deadline)
        except LockTimeout:
            asked.withdraw()
            return None
        except BaseException:
            asked.withdraw()
            raise

    async def _wait(self, deadline: Deadline) -> tuple[int, AsyncHeld]:
        """Ask for all, take the first, withdraw the rest."""
        session = self._client.session
        asked: list[AsyncAsked] = []
        winner: AsyncAsked | None = None
        try:
            for slot in self._slots:
                asked.append(ask(session, slot, Mode.EX, apart=True))
            first = await first_of(session, asked, deadline)
            if first is None:
                raise self._too_late(deadline.timeout)
            held = await first.take(deadline)
            winner = first
            return asked.index(first), held
        finally:
            for one in asked:
                if one is not winner:
                    one.withdraw()

    async def _permit(self, number: int, slot: AsyncHeld, gate: AsyncHeld, deadline: Deadline) -> AsyncPermit:
        """The gate is opened for the next in line, and stays as NL: it keeps the number of permits."""
        try:
            if gate.mode is Mode.EX:
                try:
                    await gate.convert(Mode.NL, deadline.rest(), value=self._count(gate))
                except LockLost:  # while we waited; the permit is a grant of the new life
                    drop(gate)
                    gate = await self._client.acquire(self._gate, Mode.NL, deadline.rest(), flags=Flag.EXPEDITE)
                    self._agree(gate)
        except BaseException:
            drop(slot)
            raise
        self._last = number
        return AsyncPermit(self.name, number, slot, gate)

    # -- with

    async def __aenter__(self) -> AsyncPermit:
        permit = await self.acquire(self.timeout)
        guard = permit.cancel_on_lost() if self._cancel_on_lost else None
        if guard is not None:
            guard.start()
        self._entered.push((permit, guard))
        return permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        permit, guard = self._entered.pop()
        await leave(permit, guard, error)
