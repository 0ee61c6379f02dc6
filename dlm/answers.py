"""From the daemon's answers to this package's exceptions and numbers; and names, which are bytes on the
wire.
"""

from __future__ import annotations

from dlm import errors
from vsync.errors import RequestFailed

__all__ = ["LOST_TEXT", "lost", "name_bytes", "name_text", "refusal"]

#: reason of a loss -> what to tell people
LOST_TEXT = {
    "no_quorum": "the node left the primary component",
    "evicted": "the cluster went on without this node",
    "daemon_gone": "the daemon has gone",
    "leaving": "the node is leaving the cluster",
    "session_closed": "the client was closed while it held the lock",
    "lease": "the lease has run out: the node has not heard from the ring, or does not run",
    "purged": "its process asked for all its locks to be dropped",
    "broken": "it was broken by an administrator",
}


def name_bytes(name: str | bytes) -> bytes:
    """Names are str (taken as UTF-8) or bytes, and bytes inside (API-R10). Raises ``TypeError`` for the
    rest.
    """
    if isinstance(name, str):
        return name.encode()
    if isinstance(name, bytes):
        return name
    raise TypeError(f"a lock's name is str or bytes, not {type(name).__name__}")


def name_text(name: bytes) -> str:
    """The name for people and JSON; bytes that are not UTF-8 appear as ``\\xff``."""
    return name.decode(errors="backslashreplace")


def lost(name: bytes, fence: int, reason: str) -> errors.LockLost:
    """The exception for a handle that is not valid because of ``reason``."""
    kind = errors.LockSuspended if reason == "lease" else errors.LockLost
    why = LOST_TEXT.get(reason, reason)
    verb = "cannot be shown to be held" if reason == "lease" else "was lost"
    return kind(f"lock {name_text(name)!r} (fence {fence}) {verb}: {why}", name=name, fence=fence, reason=reason)


def refusal(failed: RequestFailed, name: bytes, timeout: float | None = None) -> errors.DLMError:
    """The exception for a refused request about ``name``; unknown codes become ``InvalidRequest``."""
    text = f"lock {name_text(name)!r}: {failed}"
    match failed.code:
        case "again":
            return errors.LockTimeout(
                f"lock {name_text(name)!r} is not free", name=name, timeout=0 if timeout is None else timeout
            )
        case "canceled":
            return errors.LockCancelled(text, name=name)
        case "no_quorum":
            return errors.NoQuorum(text)
        case "deadlock":
            return errors.Deadlock(text, name=name)
        case "lost":
            # Nothing was held yet: the node leaves, and only another one, or its next life, can grant.
            return errors.NotConnected(text)
        case "unknown":
            return errors.NotHeld(text, name=name)
        case "busy":
            return errors.LockBusy(text, name=name)
        case "not_supported":
            return errors.NotSupported(text, code=failed.code, rule=str(failed.more.get("rule", "")))
        case code:
            return errors.InvalidRequest(text, code=code, rule=str(failed.more.get("rule", "")))
