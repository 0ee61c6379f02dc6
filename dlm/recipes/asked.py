"""A lock request on its way, for recipes that wait for one of several, or for a lock and something else.

``Client.acquire`` waits for one lock and knows one way out. Here the request and the wait are apart; what is
asked for is either taken or withdrawn, and a grant that races with the withdrawal is released (API-R8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlm.asking import lock_args
from dlm.errors import LockError, LockLost
from dlm.held import Held
from dlm.info import Flag, Mode

if TYPE_CHECKING:
    from typing import Self

    from dlm.client import WhenNoQuorum
    from dlm.recipes.deadline import Deadline
    from dlm.session import Session

__all__ = ["Asked", "ask", "drop", "wait_any"]

#: Owners of requests that belong to no thread: above all numbers that threads get. The search for deadlocks takes
#: several waits of one owner for a wait for all of them, not for any.
APART = 1 << 40


class Asked:
    """One request: its future, and the handle that it will be; withdrawn, or released, at the end of ``with``.

    Not thread-safe: one thread asks, takes, withdraws.
    """

    def __init__(self, session: Session, held: Held, future: Future[Any]) -> None:
        self.held = held
        self.future = future
        self._session = session
        self._withdrawn = False

    def take(self, deadline: Deadline) -> Held:
        """The lock, once the future is done. Raises what ``Client.acquire`` raises; nothing is left then."""
        session, held = self._session, self.held
        try:
            result = session.result(self.future, held.name, deadline.timeout)
            with session.changed:
                held.mark_granted(result)
            session.settle(held, deadline.at)
        except BaseException:
            self.withdraw()
            raise
        return held

    def withdraw(self) -> None:
        """Take the request back; a grant that is there, or still comes, is released. Idempotent."""
        if self._withdrawn:
            return
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
    session: Session,
    key: bytes,
    mode: Mode,
    flags: Flag = Flag(0),  # noqa: B008 - immutable
    *,
    no_quorum: WhenNoQuorum = "wait",
    apart: bool = False,
) -> Asked:
    """Send a lock request and return at once. Raises ``NotConnected``, ``ForkedProcess``.

    ``apart``: an owner of its own, so that its wait closes no circle.
    """
    session.check_process()
    held = Held(session, key, mode)
    args = lock_args(session, held, flags, None, no_quorum, None)
    if apart:
        args |= {"xid": 0, "owner": APART + held.serial}
    try:
        future = session.start("lock", args)
    except BaseException:
        held.mark_withdrawn()
        session.withdraw(held, None)
        raise
    future.add_done_callback(lambda _: _wake(session))
    return Asked(session, held, future)


def wait_any(
    session: Session, asked: Sequence[Asked], deadline: Deadline, stop: Callable[[], bool] | None = None
) -> Asked | None:
    """The first of ``asked``, in their order, that has an answer; ``None`` when the time is up, or when ``stop()``
    is true, which is looked at whenever ``session.changed`` is notified.
    """
    with session.changed:
        while True:
            for one in asked:
                if one.future.done():
                    return one
            if deadline.over or (stop is not None and stop()):
                return None
            session.changed.wait(deadline.rest())


def drop(held: Held, wait: bool = False) -> None:
    """Release a lock that matters no longer, lost or not."""
    if held.released:
        return
    try:
        held.release(wait)
    except (LockLost, LockError):
        pass


def _wake(session: Session) -> None:
    with session.changed:
        session.changed.notify_all()
