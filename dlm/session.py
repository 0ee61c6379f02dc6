"""A session with a node as threads use it: waiting with a way out, and the thread as the owner of what it asks for.

``Client`` and ``Held`` are what people see; this is what they share. All methods may be called by any
thread; the channel's reader thread calls ``_on_push`` and ``_on_close``.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from dlm.caching import Caching
from dlm.errors import DLMError, LockCancelled, NotHeld
from dlm.info import LockInfo
from dlm.session_base import (
    CANCEL_GRACE_S,
    HOME_MARGIN_S,
    SETTLE_POLL_S,
    TRY_PATIENCE_S,
    Asked,
    SessionBase,
    checked_timeout,
    unwritten,
)

if TYPE_CHECKING:
    from dlm.grant import Grant
    from dlm.recipes.doorbell import Doorbells
    from vsync.ipc import Channel

__all__ = ["CANCEL_GRACE_S", "TRY_PATIENCE_S", "Asked", "Session", "checked_timeout"]


class Session(SessionBase):
    """Everything the handles of one channel have in common.

    ``changed`` guards the state of all of them and is notified when one ends or the lease may have changed.
    """

    changed: threading.Condition

    def __init__(self, channel: Channel, space: str, clock_us: Callable[[], int]) -> None:
        self.doorbells: Doorbells | None = None  #: of the recipes; that of ``root`` counts
        self._owners = itertools.count(1)
        self._thread = threading.local()
        self.kept = Caching(self, channel.local)  #: what is held although it was released
        super().__init__(channel, space, clock_us, threading.Condition())

    # -- requests

    def call(self, verb: str, args: Mapping[str, Any], name: bytes = b"") -> Any:
        """Send a request and wait for its answer. Raises what ``result`` raises."""
        return self.result(self.start(verb, args), name)

    def call_release(self, verb: str, args: Mapping[str, Any], name: bytes, lost: bool = False) -> None:
        """Release something and wait for the answer; whatever that is, it is free of us.

        Raises ``NotConnected`` if a value block may not have been written, unless the lock was ``lost`` anyway.
        """
        try:
            self.call(verb, args, name)
        except (DLMError, OSError) as failed:
            # The session has ended, or the node does not know the lock any more.
            error = unwritten(args, name)
            if error is not None and not lost:
                raise error from failed

    def outcome(self, future: Future[Any], asked: Asked, timeout: float | None) -> tuple[Any, bool]:
        """The answer of a lock or convert request, and whether it came too late.

        The node counts the time-out itself; if it is silent for longer, a cancel follows the request from here,
        and whichever comes first in the order decides: so the answer can be a late grant. Raises
        ``LockTimeout`` when the cancel won, or when there is no outcome within the grace time (the future is not
        done then), and what ``result`` raises.
        """
        if timeout is None:
            return self.result(future, asked.name), False
        if answered(future, timeout + HOME_MARGIN_S if timeout > 0 else TRY_PATIENCE_S):
            return self.result(future, asked.name, timeout), False
        self.post("cancel", {"h": asked.serial})
        if not answered(future, CANCEL_GRACE_S):
            raise self.too_late(asked.name, timeout)
        try:
            return self.result(future, asked.name, timeout), True
        except LockCancelled:
            raise self.too_late(asked.name, timeout) from None

    def owner(self) -> int:
        """The number of the calling thread within this session, as owner of the locks it asks for."""
        number: int | None = getattr(self._thread, "owner", None)
        if number is None:
            number = self._thread.owner = next(self._owners)
        return number

    def purge(self, node: int | None, pid: int) -> int | None:
        """See ``Client.purge``."""
        where = {} if node is None else {"node": node}
        purged: int | None = self.call("purge", {"pid": pid, **where})["purged"]
        return purged

    def show(self, name: bytes, space: str) -> LockInfo | None:
        """See ``Client.show``."""
        try:
            return LockInfo.from_row(self.call("show", {"name": name, "space": space}, name))
        except NotHeld:
            return None

    # -- what is kept after its release

    def close(self) -> None:
        """Give back what is kept, end all handles, then the channel."""
        self.kept.close()
        super().close()

    def close_space(self) -> None:
        """The same for one lockspace; the session goes on."""
        self.kept.leave(self.space)
        super().close_space()
        self.kept.leave(self.space)  # what another thread has taken or given back meanwhile

    def end_all(self, reason: str) -> None:
        """Nothing is held any more."""
        self.kept.ended()
        super().end_all(reason)

    def _called(self, serial: int) -> None:
        self.kept.called(serial)

    def _lost(self, serial: int) -> None:
        self.kept.lost(serial)

    # -- the lease

    def settle(self, held: Grant, limit: float | None) -> None:
        """Return when a fresh grant is backed by the lease of its generation (``limit``: monotonic seconds).

        Raises ``LockLost``, ``LockTimeout``.
        """
        if self.unsettled(held, limit):
            with self.changed:
                while self.unsettled(held, limit):
                    self.changed.wait(SETTLE_POLL_S)

    def catch_up(self, held: Grant, seconds: float) -> None:
        """Let the page that tells of leases catch up with a fresh grant, but no longer than that."""
        limit = time.monotonic() + seconds
        with self.changed:
            while self.closed is None and self.lease()[0] < held.generation and time.monotonic() < limit:
                self.changed.wait(SETTLE_POLL_S)


def answered(future: Future[Any], timeout: float) -> bool:
    """Wait for it, at most so many seconds; whether it is done."""
    with contextlib.suppress(TimeoutError, CancelledError):
        future.exception(timeout)
    return future.done()
