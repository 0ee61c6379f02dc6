"""``on_lost`` callbacks: one thread per client, started with the first of them.

Callbacks run neither on the channel's reader thread, which must not block, nor on the application's own. The
thread also looks at the lease: a node that is stopped or cut off cannot push anything.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlm.held import Held
    from dlm.session import Session

__all__ = ["LossWatch"]

_log = logging.getLogger("dlm")


class LossWatch:
    """Calls ``on_lost(held, reason)`` once for each handle that is lost or whose lease runs out. Thread-
    safe.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        # Holds the handles: someone who is to be told of a loss need not keep the handle alive.
        self._watched: dict[Held, Callable[[Held, str], object]] = {}
        self._thread: threading.Thread | None = None

    def add(self, held: Held, on_lost: Callable[[Held, str], object]) -> None:
        """Watch ``held`` from now until it is released or lost."""
        with self._session.changed:
            self._watched[held] = on_lost
            self._session.changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dlm-on-lost", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        changed = self._session.changed
        while True:
            with changed:
                due = self._due()
                if not due:
                    if not self._watched:
                        self._thread = None
                        return
                    changed.wait(min(held.lease_rest_s() for held in self._watched))
            for held, reason, on_lost in due:
                try:
                    on_lost(held, reason)
                except Exception:  # noqa: BLE001 - the application's code; the next callback must still run
                    _log.exception("on_lost callback of %r failed", held)

    def _due(self) -> list[tuple[Held, str, Callable[[Held, str], object]]]:
        due = []
        for held, on_lost in list(self._watched.items()):
            reason = held.loss_now()
            if reason is not None:
                due.append((held, reason, on_lost))
            if reason is not None or held.released:
                del self._watched[held]
        return due
