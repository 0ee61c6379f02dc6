"""The status block of an operation: what ``Lockspace`` gives at once, and what is known of it so far."""

from __future__ import annotations

import errno
from concurrent.futures import Future
from enum import IntEnum

from dlm.answers import name_text
from dlm.errors import DLMError
from dlm.info import Mode, Outcome
from vsync.errors import RequestFailed

__all__ = ["Lksb", "Status", "status_of"]


class Status(IntEnum):
    """How an operation stands; the values are those of errno and libdlm.

    Errors of the caller are exceptions and never a status (locks.md E1–E24).
    """

    OK = 0  #: granted
    EINPROGRESS = errno.EINPROGRESS  #: no outcome yet
    EAGAIN = errno.EAGAIN  #: refused rather than queued (NOQUEUE), or an orphan in another mode (P3)
    EDEADLK = errno.EDEADLK  #: waiting would never have ended; ``error.cycle`` tells why
    ETIMEDOUT = errno.ETIMEDOUT  #: not granted in time
    ECANCEL = 0x10001  #: withdrawn; a conversion keeps the old mode
    EUNLOCK = 0x10002  #: the lock is gone, as was asked
    ENOENT = errno.ENOENT  #: no orphan to adopt (P3), or the node knows no such lock
    EBUSY = errno.EBUSY  #: another operation is in progress
    EINVAL = errno.EINVAL  #: the node refuses the request as such
    ENOMEM = errno.ENOMEM  #: too many locks of this node on one name
    EPERM = errno.EPERM  #: this user may not
    ENOTCONN = errno.ENOTCONN  #: the session has ended, or its node has left the primary component


#: code of a refusal -> status
_STATUS = {
    "again": Status.EAGAIN,
    "deadlock": Status.EDEADLK,
    "timeout": Status.ETIMEDOUT,
    "canceled": Status.ECANCEL,
    "unknown": Status.ENOENT,
    "busy": Status.EBUSY,
    "too_many": Status.ENOMEM,
    "permission": Status.EPERM,
    "no_quorum": Status.ENOTCONN,
    "lost": Status.ENOTCONN,
}


def status_of(failure: BaseException) -> Status:
    """The status that belongs to a failed request."""
    if isinstance(failure, RequestFailed):
        return _STATUS.get(failure.code, Status.EINVAL)
    return Status.ENOTCONN


class Lksb:
    """One operation on one lock. Every operation has a block of its own, so nothing in it outlives the operation.

    Plain attributes, all final once ``status`` is not ``EINPROGRESS`` any more:

    ``lkid`` – the lock, valid at once: what waits can be cancelled; unique in its session;
    ``name`` – of the resource;
    ``mode`` – held after the operation, and meanwhile what may be relied upon; ``None``: nothing;
    ``flags`` – a ``dlm.Outcome``;
    ``fence`` – the fencing token, 0 before the first grant;
    ``value`` – the caller's value block: as given, unless the operation read another (L8);
    ``error`` – what the friendly interface would raise for a status that is not ``OK`` or ``EUNLOCK``.
    """

    def __init__(
        self, lkid: int, name: bytes, value: bytes = b"", mode: Mode | None = None, fence: int = 0
    ) -> None:
        self.lkid = lkid
        self.name = name
        self.status = Status.EINPROGRESS
        self.mode = mode
        self.flags = Outcome(0)
        self.fence = fence
        self.value = value
        self.error: DLMError | None = None
        self._over: Future[Status] = Future()

    @property
    def done(self) -> bool:
        """Whether there is an outcome."""
        return self.status is not Status.EINPROGRESS

    @property
    def future(self) -> Future[Status]:
        """The outcome, to be waited for: a new future each time, so that nobody can take it away from others.

        It cannot be cancelled; ``Lockspace.cancel`` cancels the operation. Its callbacks must not block.
        """
        mine: Future[Status] = Future()
        mine.set_running_or_notify_cancel()
        self._over.add_done_callback(lambda over: mine.set_result(over.result()))
        return mine

    def wait(self, timeout: float | None = None) -> Status:
        """Wait for the outcome, at most ``timeout`` seconds: then it is ``EINPROGRESS`` still, and goes on."""
        try:
            return self._over.result(timeout)
        except TimeoutError:
            return Status.EINPROGRESS

    def announce(self) -> None:
        """Wake those who wait. Called once, by the lockspace, when all is filled in."""
        self._over.set_result(self.status)

    def __repr__(self) -> str:
        mode = self.mode.name if self.mode is not None else "-"
        return f"<Lksb {self.lkid} {name_text(self.name)!r} {self.status.name} {mode} fence={self.fence}>"
