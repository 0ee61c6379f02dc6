"""A task that is cancelled when its lock is lost, and gets ``LockLost`` for it: ``asyncio.timeout()``, with a lock
instead of a clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from dlm.aio.watch import Entry, Watched
from dlm.errors import LockLost, NotHeld
from dlm.grant import add_loss

if TYPE_CHECKING:
    from dlm.aio.session import AsyncSession

__all__ = ["CancelOnLost", "leave"]


class Cancellable(Watched, Protocol):
    """A handle, or several together."""

    def loss_error(self) -> LockLost | None:
        """The exception for its being lost at this moment."""
        ...


class CancelOnLost:
    """While its body runs, the task in it is cancelled if the lock is lost or its lease runs out; then the
    ``CancelledError`` that leaves the body becomes ``LockLost``.

    A cancellation by somebody else, at the same time or before, stays one: what is nobody's but ours is turned into
    ``LockLost``, and nothing else (``Task.cancelling``, ``Task.uncancel``). Not reusable.
    """

    def __init__(self, session: AsyncSession, held: Cancellable) -> None:
        self._session = session
        self._held = held
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0  #: how often others had asked for it before
        self._entry: Entry | None = None
        self._lost: LockLost | None = None

    def start(self) -> None:
        """The body begins, in the running task."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("there is no task to cancel")
        if self._task is not None:
            raise RuntimeError("this was entered before")
        self._task, self._cancelling = task, task.cancelling()
        self._entry = self._session.watch.add(self._held, self._on_end)

    def _on_end(self, reason: str | None) -> None:
        """Called by the loop, never within the task: so the cancellation arrives where it waits at this moment."""
        if reason is None or self._task is None:
            return
        self._lost = self._held.loss_error()
        if self._lost is not None:
            self._task.cancel()
        else:  # the lease has just come back
            self._entry = self._session.watch.add(self._held, self._on_end)

    def stop(self, error: BaseException | None) -> tuple[LockLost | None, bool]:
        """The body has ended with ``error``: the loss, if there was one, and whether ``error`` is nothing else."""
        if self._entry is not None:
            self._session.watch.remove(self._entry)
        if self._lost is None or self._task is None:
            return None, False
        ours = self._task.uncancel() <= self._cancelling
        return self._lost, ours and isinstance(error, asyncio.CancelledError)

    async def __aenter__(self) -> None:
        self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost, ours = self.stop(error)
        tell(lost, ours, error)


def tell(lost: LockLost | None, ours: bool, error: BaseException | None) -> None:
    """Raise the loss, unless the body has news of its own: then that gets a note (API-R5)."""
    if lost is None:
        return
    if error is None:
        raise lost
    if ours:
        raise lost from error
    add_loss(error, lost)


class _Releasable(Protocol):
    @property
    def released(self) -> bool: ...

    def release(self) -> Coroutine[Any, Any, None]: ...


async def leave(held: _Releasable, guard: CancelOnLost | None, error: BaseException | None) -> None:
    """The body that ``held`` was for has ended with ``error``."""
    lost, ours = (None, False) if guard is None else guard.stop(error)
    if not held.released:
        try:
            await held.release()  # never waits
        except (LockLost, NotHeld) as late:
            if lost is None:
                if error is None:
                    raise
                add_loss(error, late)
    tell(lost, ours, error)
