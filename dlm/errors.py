"""What locking can raise. Structured (no parsing of texts), picklable, and kin of the standard exceptions.

::

    DLMError
    ├── LockError
    │   ├── LockTimeout      also TimeoutError: not granted in time, or not at once
    │   ├── LockLost         the lock was taken away, or cannot be shown to be held
    │   │   └── LockSuspended    … for the moment: the lease has run out, nobody has taken the lock yet
    │   ├── NotHeld          also RuntimeError: the handle was released already
    │   ├── LockBusy         also RuntimeError: another conversion of this handle is on its way
    │   ├── Deadlock         the wait would never have ended
    │   ├── LockCancelled    the wait was withdrawn
    │   └── ForkedProcess    also RuntimeError: the handle belongs to the parent process
    ├── NotConnected         also ConnectionError: no daemon at the other end
    │   └── NoQuorum         the node is not in the primary component
    ├── PermissionDenied     also PermissionError: a lockspace of others
    ├── SpaceExists          there is a lockspace of this name already
    ├── SpaceBusy            there are locks in a lockspace, or it is being released
    ├── InvalidRequest       also ValueError: name, mode, flags or value that the lock manager refuses
    │   ├── NoSuchSpace      the lockspace is not there, or not open
    │   └── NotSupported     parents and ranges of locks
    ├── StaleFence           storage refused a fencing token: a later holder has written
    └── ConfigError          also ValueError
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.cycle import Waiting

__all__ = [
    "ConfigError",
    "DLMError",
    "Deadlock",
    "ForkedProcess",
    "InvalidRequest",
    "LockBusy",
    "LockCancelled",
    "LockError",
    "LockLost",
    "LockSuspended",
    "LockTimeout",
    "NoQuorum",
    "NoSuchSpace",
    "NotConnected",
    "NotHeld",
    "NotSupported",
    "PermissionDenied",
    "SpaceBusy",
    "SpaceExists",
    "StaleFence",
]


class DLMError(Exception):
    """Root of everything this package raises on purpose. ``str()`` is a sentence for people, ``rule`` the rule of
    docs/locks.md that says so, if there is one.
    """

    rule = ""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors take keywords, which the default would lose; notes travel in __dict__ as well.
        return _rebuild, (type(self), str(self)), dict(self.__dict__)


def _rebuild(kind: type[DLMError], message: str) -> DLMError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    return error


class LockError(DLMError):
    """Something about one lock. ``name`` is its name in bytes, empty if there is none."""

    def __init__(self, message: str = "", *, name: bytes = b"") -> None:
        super().__init__(message)
        self.name = name


class LockTimeout(LockError, TimeoutError):
    """The lock was not granted within ``timeout`` seconds (0: not at once). Nothing stays in the queue."""

    def __init__(self, message: str = "", *, name: bytes = b"", timeout: float | None = None) -> None:
        super().__init__(message, name=name)
        self.timeout = timeout


class LockLost(LockError):
    """The lock is not held any more, although nobody released it.

    ``reason``: ``no_quorum`` (the node left the primary component), ``evicted`` (its life ended and another
    began), ``daemon_gone``, ``leaving`` (the node leaves on purpose), ``session_closed`` (``Client.close``
    with the lock held), ``broken``. ``fence`` is the token of the lost grant.
    """

    def __init__(
        self, message: str = "", *, name: bytes = b"", fence: int = 0, reason: str = "broken"
    ) -> None:
        super().__init__(message, name=name)
        self.fence = fence
        self.reason = reason


class LockSuspended(LockLost):
    """The lease has run out (``reason`` is ``lease``): the node has not heard from the ring, or does not run.

    The lock may turn out to be held still when the node is back; until then it must not be relied upon.
    """


class NotHeld(LockError, RuntimeError):
    """The handle has been released, or was never granted; or there is no such lock (``rule`` E8, E21, P3)."""

    def __init__(self, message: str = "", *, name: bytes = b"", rule: str = "") -> None:
        super().__init__(message, name=name)
        self.rule = rule


class LockBusy(LockError, RuntimeError):
    """An operation on this lock is on its way; one at a time (``rule`` E10, E22)."""

    def __init__(self, message: str = "", *, name: bytes = b"", rule: str = "E10") -> None:
        super().__init__(message, name=name)
        self.rule = rule


class Deadlock(LockError):
    """Waiting would close a circle. ``cycle`` has its locks in order, the refused one first: each waits for what
    belongs to the owner of the next, the last one for the first. Empty where that is not told.
    """

    def __init__(self, message: str = "", *, name: bytes = b"", cycle: tuple[Waiting, ...] = ()) -> None:
        super().__init__(message, name=name)
        self.cycle = cycle


class LockCancelled(LockError):
    """The wait was withdrawn before the lock was granted."""


class ForkedProcess(LockError, RuntimeError):
    """A client or handle of the parent process was used in a child; call ``dlm.connect()`` there."""


class NotConnected(DLMError, ConnectionError):
    """There is no daemon at the other end. ``url`` is what was tried, as far as it is known."""

    def __init__(self, message: str = "", *, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class NoQuorum(NotConnected):
    """The node is not in the primary component, and the caller chose not to wait for that."""


class InvalidRequest(DLMError, ValueError):
    """The lock manager refuses the request as such. ``code`` is its stable word for the reason, ``rule`` the rule
    of docs/locks.md that it breaks, if there is one.
    """

    def __init__(self, message: str = "", *, code: str = "invalid", rule: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.rule = rule


class NoSuchSpace(InvalidRequest):
    """There is no such lockspace, it has been released, or this session has not opened it (E11)."""


class PermissionDenied(DLMError, PermissionError):
    """The lockspace ``space`` belongs to others. Its permissions are those of a file, and to open it takes both
    read and write; to release it, its owner or root.
    """

    def __init__(self, message: str = "", *, space: str = "") -> None:
        super().__init__(message)
        self.space = space


class SpaceExists(DLMError):
    """There is a lockspace ``space`` already, and an exclusive creation wants to be the first."""

    def __init__(self, message: str = "", *, space: str = "") -> None:
        super().__init__(message)
        self.space = space


class SpaceBusy(DLMError):
    """There are locks in the lockspace ``space``, so it was not released; or it is being released at the moment, so
    there are no new locks.
    """

    def __init__(self, message: str = "", *, space: str = "") -> None:
        super().__init__(message)
        self.space = space


class NotSupported(InvalidRequest):
    """Locks have no parents and no ranges here (E13)."""


class StaleFence(DLMError):
    """Storage has refused a fencing ``token``: it is smaller than ``newest``, that of the last writer. Whoever came
    with it does not hold the lock any more, whatever it may believe (``FencedResource``, docs/fencing.md).
    """

    def __init__(self, message: str = "", *, token: int = 0, newest: int = 0) -> None:
        super().__init__(message)
        self.token = token
        self.newest = newest


class ConfigError(DLMError, ValueError):
    """A URL, option or configuration value is wrong; the message names it."""
