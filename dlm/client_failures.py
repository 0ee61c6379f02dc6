"""The part of ``Client`` that is about failures of nodes, and recovery from them by an application."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dlm.errors import NotConnected
from dlm.recoveries import FailureInfo, Recovery

if TYPE_CHECKING:
    from dlm.session import Session

__all__ = ["ClientFailures", "recovered_args"]


def recovered_args(space: str, what: Recovery | int) -> dict[str, Any]:
    """The arguments of ``recovered``."""
    if isinstance(what, Recovery):
        return {"space": what.space, "node": what.node, "position": what.position}
    return {"space": space, "node": what}


class ClientFailures:
    """What waits after a failure (docs/failures.md). A part of ``Client``."""

    _session: Session

    def failures(self) -> list[FailureInfo]:
        """All failures that grants of locks wait for, in all lockspaces, as this node knows them."""
        return [FailureInfo.from_row(row) for row in self._session.call("failures", {})]

    def recoveries(self) -> list[Recovery]:
        """What has to be recovered from in this client's lockspace, in the order of the failures."""
        args = {"space": self._session.space}
        return [Recovery.from_row(row) for row in self._session.call("recoveries", args)]

    def next_recovery(self, timeout: float | None = None) -> Recovery | None:
        """Wait for a failure in this client's lockspace that it has not been given yet and that is ready to be
        recovered from; ``None`` after ``timeout`` seconds. Several programs, at any nodes, are all given it.
        """
        session = self._session
        limit = None if timeout is None else time.monotonic() + timeout
        session.call("recover_watch", {"space": session.space})
        with session.changed:
            while (row := session.take_recovery()) is None:
                if session.closed:
                    raise NotConnected(f"the session has ended: {session.closed}")
                rest = None if limit is None else limit - time.monotonic()
                if rest is not None and rest <= 0:
                    return None
                session.changed.wait(rest)
        return Recovery.from_row(row)

    def recovered(self, what: Recovery | int) -> None:
        """The application has recovered from this failure, or from all of a node in this client's lockspace: the
        locks that the node had may go to others. Returns when all members know.

        Raises ``InvalidRequest`` with the code ``no_failure`` (nothing waits for that) or ``early``, ``NoQuorum``,
        and ``NotConnected`` if this node's part ended before it was known: look at ``recoveries`` then.
        """
        self._session.call("recovered", recovered_args(self._session.space, what))
