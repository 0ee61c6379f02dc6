"""Leader election for tasks of an event loop. What it is, and how it is made, says ``dlm.recipes.election``.

::

    async for term in locks.election("scheduler", identity=host):
        async with term.cancel_on_lost():
            await lead(epoch=term.fence)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlm.aio.asked import AsyncAsked, ask, first_of
from dlm.aio.cancel import CancelOnLost, leave
from dlm.aio.doorbell import bells_of
from dlm.aio.held import AsyncHeld
from dlm.errors import LockCancelled, LockLost, NotHeld
from dlm.info import Flag, Holder, Mode
from dlm.recipes.deadline import Deadline
from dlm.recipes.election import ElectionBase, Leader, TermBase, TermEndBase, leader_in
from dlm.session_base import TRY_PATIENCE_S

if TYPE_CHECKING:
    from typing import Self

    from dlm.aio.client import AsyncClient
    from dlm.aio.doorbell import AsyncDoorbell

__all__ = ["AsyncElection", "AsyncTerm", "AsyncTermEnd"]


class AsyncTermEnd(TermEndBase):
    """Whether a term is over, lost or resigned: like ``asyncio.Event``, with a ``reason``; can be awaited."""

    _held: AsyncHeld

    def __init__(self, held: AsyncHeld) -> None:
        super().__init__(held)

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the term is over (``True``) or ``timeout`` seconds are (``False``)."""
        return await self._held.lost.wait(timeout) or self.is_set()

    def __await__(self) -> Generator[Any, None, str | None]:
        """Wait until the term is over, and give the reason."""
        return self._reason().__await__()

    async def _reason(self) -> str | None:
        await self.wait()
        return self.reason


class AsyncTerm(TermBase[AsyncHeld]):
    """A time as the leader. Made by ``AsyncElection``; ``async with`` resigns at the end."""

    lost: AsyncTermEnd

    def __init__(self, election: AsyncElection, held: AsyncHeld, bell: AsyncDoorbell) -> None:
        super().__init__(election.identity, held)
        self.lost = AsyncTermEnd(held)
        self._election = election
        self._bell = bell

    def cancel_on_lost(self) -> CancelOnLost:
        """``async with term.cancel_on_lost():`` cancels the task in the body when the term is lost, and the body
        ends with ``LockLost``; see ``AsyncHeld.cancel_on_lost``.
        """
        return self.held.cancel_on_lost()

    def resign(self) -> Coroutine[Any, Any, None]:
        """Step down, when this is called; awaited, the next one may lead. Once is enough, more is nothing.

        Raises, when awaited, ``LockLost`` if it was not the leader for certain any more.
        """
        return self._resigned(*self.step_down())

    def step_down(self) -> tuple[LockLost | None, Future[None] | None]:
        """As ``resign``, for those who do not wait in a task: the loss, and what is done when the lock is free."""
        if self._over:
            return None, None
        self._over = True
        self._election.ended(self)
        freed: Future[None] | None = None
        certain = self.held.lost.reason is None  # else it may have a node that does not answer
        if certain:
            self.held.value = b""
        try:
            lost, freed = self.held.give_back()
        finally:
            if freed is not None and certain:
                freed.add_done_callback(lambda _: self._bell.close(self._bell.ring()))
            else:
                self._bell.close(self._bell.ring())
        return lost, freed if certain else None

    async def _resigned(self, lost: LockLost | None, freed: Future[None] | None) -> None:
        if freed is not None:
            await self._election.session.done(freed)
        if lost is not None:
            raise lost

    @property
    def released(self) -> bool:
        """Whether it has resigned."""
        return self._over

    release = resign

    async def __aenter__(self) -> Self:
        if self._over:
            raise NotHeld(f"{self!r} is over", name=self.held.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await leave(self, None, error)


class AsyncElection(ElectionBase):
    """A candidate for ``name`` (at most 57 bytes); one term at a time for each task that campaigns.

    ``async for term in election`` is entered only as the leader. When its body ends, the term does; then it
    campaigns again, behind those who wait. ``resign()``, ``break`` and an exception end term and candidacy. When
    the session ends, as the daemon has gone, the loop raises ``NotConnected``. Threads, tasks and processes are
    candidates of the same election.
    """

    def __init__(self, client: AsyncClient, name: str | bytes, identity: str | None = None) -> None:
        """``identity`` is what others are told of this candidate; default: host and process id."""
        super().__init__(name, identity)
        self.session = client.session
        self._client = client
        self._terms: list[AsyncTerm] = []
        self._resigned = 0  #: how often
        self._stops: set[Future[None]] = set()  #: of the campaigns under way

    # -- leading

    async def campaign(self, timeout: float | None = None) -> AsyncTerm:
        """Wait until this is the leader: ``async with await election.campaign() as term:``.

        Raises ``LockTimeout``, ``LockCancelled`` (``resign()`` meanwhile), ``NotConnected``, ``ForkedProcess``,
        ``LockLost`` (lost before this could return), ``Deadlock``; nothing is left in the queue then, nor when the
        task is cancelled (API-R8).
        """
        return await self._campaign(Deadline(timeout), self._resigned)

    def __aiter__(self) -> AsyncIterator[AsyncTerm]:
        """The terms of this candidate, one after the other."""
        return _Terms(self, self._resigned)

    def resign(self) -> Coroutine[Any, Any, None]:
        """End this candidate's terms and candidacy, when this is called; a waiting ``campaign`` raises
        ``LockCancelled``, a loop ends. Awaited, the next one may lead. It may be a candidate again.
        """
        self._resigned += 1
        for stop in self._stops:
            stop.set_result(None)
        self._stops.clear()
        return self._freed([freed for term in list(self._terms) if (freed := term.step_down()[1]) is not None])

    async def _freed(self, futures: list[Future[None]]) -> None:
        for future in futures:
            await self.session.done(future)

    async def _campaign(self, deadline: Deadline, resigned: int) -> AsyncTerm:
        stop: Future[None] = Future()
        self._stops.add(stop)
        try:
            bell = await self._open_bell(deadline)
            try:
                held = await self._win(deadline, stop)
            except BaseException:
                bell.close()
                raise
        finally:
            self._stops.discard(stop)
        term = AsyncTerm(self, held, bell)
        self._terms.append(term)
        try:
            await held.convert(Mode.EX, deadline.rest(), value=self._says(held.fence, self.session))
            await self.session.done(bell.ring())
        except NotHeld:  # resigned, the other way round
            raise self._cancelled() from None
        except BaseException:
            term.step_down()
            raise
        if resigned != self._resigned:  # by somebody who did not see the term yet
            term.step_down()
            raise self._cancelled()
        return term

    async def _win(self, deadline: Deadline, stop: Future[None]) -> AsyncHeld:
        if deadline.timeout == 0:
            asked = ask(self.session, self._key, Mode.EX, Flag.NOQUEUE, no_quorum="fail")
            patient = Deadline(TRY_PATIENCE_S)
        else:
            asked = ask(self.session, self._key, Mode.EX)
            patient = deadline
        try:
            if await first_of(self.session, [asked], patient, stop) is None:
                raise self._cancelled() if stop.done() else self._not_won(deadline.timeout)
            return await asked.take(deadline)
        except BaseException:
            asked.withdraw()
            raise

    def ended(self, term: AsyncTerm) -> None:
        """For ``AsyncTerm``: it is over."""
        if term in self._terms:
            self._terms.remove(term)

    # -- observing

    async def leader(self) -> Leader | None:
        """Who leads, as the cluster knows it; see ``Election.leader``."""
        while True:
            with self._look() as asked:
                await first_of(self.session, [asked], Deadline(None))
                try:
                    return leader_in(await asked.take(Deadline(None)))
                except LockLost:  # that of the look; look again
                    continue

    async def candidates(self) -> tuple[Holder, ...]:
        """Who waits to be elected, in that order; see ``Election.candidates``."""
        async with await self._client.acquire(self._key, Mode.NL, flags=Flag.EXPEDITE):
            return await self._client.contenders(self._key) or ()

    async def changes(self) -> AsyncIterator[Leader | None]:
        """The leader now, then every change, for ever; see ``Election.changes``."""
        with await self._open_bell(Deadline(None)) as bell:
            known: Leader | None = None
            first = True
            while True:
                seen, leader = await self._observe(bell)
                if first or leader != known:
                    first, known = False, leader
                    yield leader
                await bell.wait(seen)

    async def _observe(self, bell: AsyncDoorbell) -> tuple[int, Leader | None]:
        """The leader, and how many rings had been heard before that was asked."""
        while True:
            seen = bell.rings
            if not bell.primary:
                return seen, None
            with self._look() as asked:
                while not asked.future.done() and bell.primary:
                    await first_of(self.session, [asked], Deadline(None), bell.changed)
                if not asked.future.done():
                    continue
                try:
                    leader = leader_in(await asked.take(Deadline(None)))
                except LockLost:
                    continue
            gone = leader is not None and (leader.node, leader.session) not in bell.members
            # A process leaves the group and gives up its locks by two messages: either will do.
            return seen, None if gone else leader

    def _look(self) -> AsyncAsked:
        return ask(self.session, self._key, Mode.NL, Flag.EXPEDITE)

    async def _open_bell(self, deadline: Deadline) -> AsyncDoorbell:
        return await bells_of(self.session).open(self.session.space, "election", self.name, deadline)


class _Terms:
    """What ``async for`` goes through. Not a generator: that would end its term some time after ``break``."""

    def __init__(self, election: AsyncElection, resigned: int) -> None:
        self._election = election
        self._resigned = resigned
        self._term: AsyncTerm | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncTerm:
        last, self._term = self._term, None
        if last is not None:
            with suppress(LockLost):
                await last.resign()
        while self._resigned == self._election._resigned:
            try:
                self._term = await self._election._campaign(Deadline(None), self._resigned)
                return self._term
            except LockCancelled:
                break
            except LockLost:
                continue
        raise StopAsyncIteration

    def __del__(self) -> None:
        if self._term is not None:
            with suppress(Exception):  # the loop, or the session, has ended: and so has the term
                self._term.step_down()
