"""``on_lost`` and ``on_blocking`` callbacks: one thread per client, started with the first of them.

Callbacks run neither on the channel's reader thread, which must not block, nor on the application's own. The
thread also looks at the lease: a node that is stopped or cut off cannot push anything.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dlm.info import Mode
    from dlm.session import Session

__all__ = ["LossWatch"]

OnLost = Callable[[Any, str], object]
OnBlocking = Callable[[Any, "Mode"], object]

_log = logging.getLogger("dlm")


class Watched(Protocol):
    """A handle, or several together: what the callbacks are given."""

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

    def lease_rest_s(self, at_most: float | None = None) -> float:
        """When to look again."""
        ...


class LossWatch:
    """Calls ``on_lost(held, reason)`` once for each handle that is lost or whose lease runs out, and
    ``on_blocking(held, mode)`` while it is held and in the way of others. Thread-safe.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        # Holds the handles: someone who is to be told of a loss need not keep the handle alive.
        self._watched: dict[Watched, tuple[OnLost | None, OnBlocking | None]] = {}
        self._thread: threading.Thread | None = None

    def add(self, held: Watched, on_lost: OnLost | None, on_blocking: OnBlocking | None = None) -> None:
        """Watch ``held`` from now until it is released or lost."""
        with self._session.changed:
            self._watched[held] = on_lost, on_blocking
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
                    changed.wait(min(self._rest_s(held) for held in self._watched))
            for held, call in due:
                try:
                    call()
                except Exception:  # noqa: BLE001 - the application's code; the next callback must still run
                    _log.exception("a callback of %r failed", held)

    def _rest_s(self, held: Watched) -> float:
        """Until it has to be looked at again without being told."""
        return held.lease_rest_s() if self._watched[held][0] is not None else 1.0

    def _due(self) -> list[tuple[Watched, Callable[[], object]]]:
        due: list[tuple[Watched, Callable[[], object]]] = []
        for held, (on_lost, on_blocking) in list(self._watched.items()):
            reason = held.loss_now()
            if reason is not None and on_lost is not None:
                due.append((held, partial(on_lost, held, reason)))
                self._watched[held] = None, on_blocking
            elif reason is None and on_blocking is not None and (mode := held.take_blocking()) is not None:
                due.append((held, partial(on_blocking, held, mode)))
            # Advice may come when the lease is back.
            if held.released or (reason is not None and (reason != "lease" or on_blocking is None)):
                del self._watched[held]
        return due
