"""From the daemon's answers to this package's exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dlm import errors
from dlm.arguments import BadArgument
from dlm.cycle import cycle_from, cycle_text
from dlm.info import LOW_LEVEL, Flag
from dlm.text import name_bytes, name_text
from vsync.errors import RequestFailed

__all__ = ["LOST_TEXT", "bad_argument", "check_friendly", "lost", "name_bytes", "name_text", "refusal", "refusing"]

#: reason of a loss -> what to tell people
LOST_TEXT = {
    "no_quorum": "the node left the primary component",
    "evicted": "the cluster went on without this node",
    "daemon_gone": "the daemon has gone",
    "leaving": "the node is leaving the cluster",
    "session_closed": "the client was closed while it held the lock",
    "lease": "the lease has run out: the node has not heard from the ring, or does not run",
    "diverged": "its node's lock table differed from the others', and the node began anew",
    "purged": "its process asked for all its locks to be dropped",
    "released": "its lockspace was released",
    "space_closed": "the client closed its lockspace while it held the lock",
    "broken": "it was broken by an administrator",
}


def lost(name: bytes, fence: int, reason: str) -> errors.LockLost:
    """The exception for a handle that is not valid because of ``reason``."""
    kind = errors.LockSuspended if reason == "lease" else errors.LockLost
    why = LOST_TEXT.get(reason, reason)
    verb = "cannot be shown to be held" if reason == "lease" else "was lost"
    return kind(f"lock {name_text(name)!r} (fence {fence}) {verb}: {why}", name=name, fence=fence, reason=reason)


def bad_argument(bad: BadArgument, name: bytes = b"") -> errors.InvalidRequest:
    """The exception for a request that was refused before it was sent."""
    kind = errors.NotSupported if bad.code == "not_supported" else errors.InvalidRequest
    about = f"lock {name_text(name)!r}: " if name else ""
    return kind(f"{about}{bad}", code=bad.code, rule=bad.rule)


@contextmanager
def refusing(name: bytes = b"") -> Iterator[None]:
    """Inside, a ``BadArgument`` becomes the exception that belongs to it."""
    try:
        yield
    except BadArgument as bad:
        raise bad_argument(bad, name) from None


def check_friendly(flags: Flag) -> None:
    """Raise ``InvalidRequest`` for flags that ``Client`` and ``Held`` have methods and arguments for."""
    if flags and flags & LOW_LEVEL:  # mostly there are none, and ``&`` of these makes an object
        rule = "E3" if flags & Flag.CANCEL else ""
        raise errors.InvalidRequest(f"{flags & LOW_LEVEL!r}: only dlm.Lockspace takes this", rule=rule)


def refusal(failed: RequestFailed, name: bytes, timeout: float | None = None) -> errors.DLMError:
    """The exception for a refused request about ``name``; unknown codes become ``InvalidRequest``."""
    text = f"lock {name_text(name)!r}: {failed}" if name else str(failed)
    rule = str(failed.more.get("rule", ""))
    match failed.code:
        case "again":
            return errors.LockTimeout(
                f"lock {name_text(name)!r} is not free", name=name, timeout=0 if timeout is None else timeout
            )
        case "timeout":
            after = "in time" if timeout is None else f"within {timeout:g} s"
            text = f"lock {name_text(name)!r} was not granted {after}"
            return errors.LockTimeout(text, name=name, timeout=timeout)
        case "canceled":
            return errors.LockCancelled(text, name=name)
        case "no_quorum":
            return errors.NoQuorum(text)
        case "deadlock":
            cycle = cycle_from(failed.more.get("cycle", ()))
            text = f"{text}: {cycle_text(cycle)}" if cycle else text
            return errors.Deadlock(text, name=name, cycle=cycle)
        case "lost":
            # Nothing was held yet: the node leaves, and only another one, or its next life, can grant.
            return errors.NotConnected(text)
        case "unknown":
            return errors.NotHeld(text, name=name, rule=rule)
        case "busy":
            return errors.LockBusy(text, name=name, rule=rule or "E10")
        case "no_space":
            return errors.NoSuchSpace(str(failed), code=failed.code, rule=rule)
        case "permission":
            return errors.PermissionDenied(str(failed), space=str(failed.more.get("space", "")))
        case "space_exists":
            return errors.SpaceExists(str(failed), space=str(failed.more.get("space", "")))
        case "space_busy" | "closing":
            return errors.SpaceBusy(str(failed), space=str(failed.more.get("space", "")))
        case "not_supported":
            return errors.NotSupported(text, code=failed.code, rule=rule)
        case code:
            return errors.InvalidRequest(text, code=code, rule=rule)
