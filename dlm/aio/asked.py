"""A lock request on its way, for recipes that wait for one of several, or for a lock and something else.

As ``dlm.recipes.asked``, for tasks: what is asked for is either taken or withdrawn (API-R8).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlm.aio.held import AsyncHeld
from dlm.asking import lock_args
from dlm.info import Flag, Mode
from dlm.recipes.asked import APART

if TYPE_CHECKING:
    from typing import Self

    from dlm.aio.session import AsyncSession
    from dlm.recipes.deadline import Deadline

__all__ = ["AsyncAsked", "ask", "drop", "first_of"]


class AsyncAsked:
    """One request: its future, and the handle that it will be; withdrawn, or released, at the end of ``with``."""

    def __init__(self, session: AsyncSession, held: AsyncHeld, future: Future[Any]) -> None:
        self.held = held
        self.future = future
        self._session = session
        self._withdrawn = False

    async def take(self, deadline: Deadline) -> AsyncHeld:
        """The lock, once the future is done. Raises what ``AsyncClient.acquire`` does; nothing is left then."""
        session, held = self._session, self.held
        try:
            held.mark_granted(session.result(self.future, held.name, deadline.timeout))
            await session.settle(held, deadline.at)
        except BaseException:
            self.withdraw()
            raise
        return held

    def withdraw(self) -> None:
        """Take the request back; a grant that is there, or still comes, is released. Idempotent."""
        if not self._withdrawn:
            self._withdrawn = True
            self.held.mark_withdrawn()
            self._session.withdraw(self.held, self.future)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.withdraw()


def ask(
    session: AsyncSession,
    key: bytes,
    mode: Mode,
    flags: Flag = Flag(0),  # noqa: B008 - immutable
    *,
    no_quorum: str = "wait",
    apart: bool = False,
) -> AsyncAsked:
    """Send a lock request and return at once. Raises ``NotConnected``, ``ForkedProcess``.

    ``apart``: an owner of its own, so that its wait closes no circle.
    """
    session.check_loop()
    held = AsyncHeld(session, key, mode)
    args = lock_args(session, held, flags, None, no_quorum, None)
    if apart:
        args |= {"xid": 0, "owner": APART + held.serial}
    return AsyncAsked(session, held, session.start("lock", args))


async def first_of(
    session: AsyncSession, asked: Sequence[AsyncAsked], deadline: Deadline, stop: Future[None] | None = None
) -> AsyncAsked | None:
    """The first of ``asked``, in their order, with an answer; ``None`` if the time is up or ``stop`` is done."""
    futures: list[Future[Any]] = [one.future for one in asked]
    await session.any_done([*futures, stop] if stop is not None else futures, deadline.rest())
    return next((one for one in asked if one.future.done()), None)


def drop(held: AsyncHeld) -> None:
    """Release a lock that matters no longer, lost or not."""
    if not held.released:
        held.give_back()
