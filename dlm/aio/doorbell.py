"""Doorbells for tasks of an event loop; what they are for says ``dlm.recipes.doorbell``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlm.errors import DLMError, LockTimeout, NotConnected
from dlm.recipes.doorbell import FULL_POLL_S, SERVICE, Heard, group_of
from dlm.session_base import TRY_PATIENCE_S
from vsync import errors as vsync_errors

if TYPE_CHECKING:
    from typing import Self

    from dlm.aio.session import AsyncSession
    from dlm.recipes.deadline import Deadline

__all__ = ["AsyncDoorbell", "AsyncDoorbells", "bells_of"]


class AsyncDoorbell(Heard):
    """One bell, as long as it is open: ``with await doorbells.open(...) as bell``."""

    def __init__(self, owner: AsyncDoorbells, group: str) -> None:
        super().__init__(group)
        self.changed: Future[None] = Future()  #: done, and replaced, when something has been heard
        self._owner = owner

    def heard(self) -> None:
        """Wake those who wait for a change."""
        changed, self.changed = self.changed, Future()
        changed.set_result(None)

    def ring(self) -> Future[None]:
        """Wake everybody. The future is done when the node has accepted it, or the session has ended: then the
        group's view wakes them.
        """
        return self._owner.send(self.group)

    async def wait(self, seen: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Wait until there are more than ``seen`` rings, or ``stop()``. Raises ``NotConnected`` when the session
        ends.
        """
        session = self._owner.session
        while self.rings == seen and not stop():
            if session.closed is not None:
                raise NotConnected(f"the session has ended ({session.closed})")
            await session.done(self.changed)

    def close(self, after: Future[None] | None = None) -> None:
        """Listen no longer, when ``after`` is done; once for each ``open``."""
        if after is None:
            self._owner.close(self)
        else:
            after.add_done_callback(lambda _: self._owner.close(self))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncDoorbells:
    """All bells of a session. Takes the channel's ``group`` events for itself."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self._bells: dict[str, AsyncDoorbell] = {}
        self._leaving: dict[str, Future[None]] = {}
        session.channel.on_push(SERVICE, self._on_push)
        session.channel.on_close(self._on_close)

    async def open(self, space: str, kind: str, key: bytes, deadline: Deadline) -> AsyncDoorbell:
        """The bell of a recipe ``kind`` called ``key``, when it can be heard. That waits for one message, so a
        deadline of 0 is given some patience.

        Raises ``NotConnected``, ``LockTimeout``, ``ForkedProcess``.
        """
        name = group_of(space, kind, key)
        limit = TRY_PATIENCE_S if deadline.timeout == 0 else deadline.rest()
        self.session.check_loop()
        while (leaving := self._leaving.get(name)) is not None:  # a member cannot join
            if not await self.session.done(leaving, limit):
                raise _too_late(limit)
        bell = self._bells.setdefault(name, AsyncDoorbell(self, name))
        bell.users += 1
        if bell.joined is None:
            bell.joined = self._start("join", name)
        try:
            if not await self.session.done(bell.joined, limit):
                raise _too_late(limit)
            bell.joined.result()
        except vsync_errors.NotConnected as error:
            self.close(bell)
            raise NotConnected(str(error)) from error
        except vsync_errors.RequestFailed as refused:
            self.close(bell)
            raise DLMError(f"the bell {name!r} cannot be heard: {refused}") from None
        except BaseException:
            self.close(bell)
            raise
        return bell

    def close(self, bell: AsyncDoorbell) -> None:
        """One user less; the last one leaves the group, once the join is through."""
        bell.users -= 1
        if bell.users or self._bells.get(bell.group) is not bell or bell.joined is None:
            return
        del self._bells[bell.group]
        left = self._leaving[bell.group] = Future()

        def over(_: object) -> None:
            self._leaving.pop(bell.group, None)
            left.set_result(None)

        bell.joined.add_done_callback(lambda _: self._start("leave", bell.group).add_done_callback(over))

    def send(self, group: str) -> Future[None]:
        """Ring the bell of ``group``, which is open; again while the node's send queue is full."""
        accepted: Future[None] = Future()

        def again() -> None:
            self._start("send", group, data=b"").add_done_callback(sent)

        def sent(done: Future[Any]) -> None:
            refused = done.exception()
            if isinstance(refused, vsync_errors.RequestFailed) and refused.code == "backpressure":
                self.session.loop.call_later(FULL_POLL_S, again)
            else:
                accepted.set_result(None)

        again()
        return accepted

    def _start(self, verb: str, group: str, **more: Any) -> Future[Any]:
        try:
            return self.session.channel.start(SERVICE, verb, {"group": group, **more})
        except vsync_errors.NotConnected as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _on_push(self, kind: str, data: Any) -> None:
        bell = self._bells.get(data.get("group", ""))
        if bell is not None:
            bell.on_push(kind, data)
            bell.heard()

    def _on_close(self, reason: str) -> None:
        for bell in list(self._bells.values()):
            with contextlib.suppress(Exception):
                bell.heard()


def bells_of(session: AsyncSession) -> AsyncDoorbells:
    """The bells of a session, whatever lockspace it is looked at from: its group events go to one place."""
    root = session.root
    assert isinstance(root, type(session))
    if root.doorbells is None:
        root.doorbells = AsyncDoorbells(root)
    return root.doorbells


def _too_late(limit: float | None) -> LockTimeout:
    return LockTimeout(f"the node did not order a message within {limit or 0:.3g} s", timeout=limit)
