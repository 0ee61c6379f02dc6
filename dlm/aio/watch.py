"""Who is to be told that a lock is lost, or in the way: callbacks, waiting tasks, tasks to be cancelled.

Everything happens in the event loop. A look at all that is watched follows every change that the node tells of, and
the end of the lease, which a node that is stopped or cut off cannot tell of: one timer for the whole session.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dlm.aio.session import AsyncSession
    from dlm.info import Mode

__all__ = ["Entry", "Watch", "Watched"]

_log = logging.getLogger("dlm")


class Watched(Protocol):
    """A handle, or several together."""

    @property
    def released(self) -> bool:
        """It has been given back."""
        ...

    def loss_now(self) -> str | None:
        """Why it is lost at this moment, if it is."""
        ...

    def take_blocking(self) -> Mode | None:
        """A mode that it blocks, once."""
        ...


class Entry:
    """One interest in one handle. Keeps the handle alive: who is to be told of a loss need not."""

    __slots__ = ("held", "on_blocking", "on_end")

    def __init__(
        self,
        held: Watched,
        on_end: Callable[[str | None], object] | None,
        on_blocking: Callable[[Mode], object] | None,
    ) -> None:
        self.held = held
        self.on_end = on_end  #: called once: with the reason of the loss, or ``None`` after a release
        self.on_blocking = on_blocking


class Watch:
    """Looks at the handles of a session when something may have changed."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._loop = session.loop
        self._entries: dict[Entry, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._called = False  #: a look is on its way
        self._running: set[asyncio.Future[Any]] = set()  #: callbacks that are coroutines

    def add(
        self,
        held: Watched,
        on_end: Callable[[str | None], object] | None,
        on_blocking: Callable[[Mode], object] | None = None,
    ) -> Entry:
        """Watch ``held`` from now on; ``on_end`` is called once, ``on_blocking`` until then."""
        entry = Entry(held, on_end, on_blocking)
        self._entries[entry] = None
        self.notice()
        return entry

    def remove(self, entry: Entry) -> None:
        """Not any more. Idempotent."""
        self._entries.pop(entry, None)
        if not self._entries and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def notice(self) -> None:
        """Something may have changed: look, soon. Never at once, in the middle of what changes it."""
        if self._entries and not self._called and not self._loop.is_closed():
            self._called = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._called = False
        due = [call for entry in list(self._entries) for call in self._due(entry)]
        self._set_timer()
        for call in due:
            self._run(call)

    def _due(self, entry: Entry) -> list[Callable[[], object]]:
        reason, held = entry.held.loss_now(), entry.held
        if reason is None and not held.released:
            mode = held.take_blocking() if entry.on_blocking is not None else None
            return [] if mode is None or entry.on_blocking is None else [partial(entry.on_blocking, mode)]
        due = [] if entry.on_end is None else [partial(entry.on_end, reason)]
        entry.on_end = None
        if reason != "lease" or entry.on_blocking is None:  # else advice may come when the lease is back
            self.remove(entry)
        return list(due)

    def _set_timer(self) -> None:
        """The lease is one for all handles of the session."""
        if self._timer is None and any(entry.on_end is not None for entry in self._entries):
            self._timer = self._loop.call_later(self._session.lease_rest_s(), self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._look()

    def _run(self, call: Callable[[], object]) -> None:
        """A callback of the application; its failure must not keep the next from being called."""
        try:
            result = call()
        except Exception:  # noqa: BLE001 - the application's code
            _log.exception("a callback for a lock failed")
            return
        if inspect.isawaitable(result):
            task = asyncio.ensure_future(_awaited(result), loop=self._loop)
            self._running.add(task)
            task.add_done_callback(self._running.discard)


async def _awaited(result: Awaitable[object]) -> None:
    try:
        await result
    except Exception:  # noqa: BLE001 - the application's code
        _log.exception("a callback for a lock failed")
