"""Callbacks of a lockspace, one after the other in the order in which they became due (A1, A2).

Either a thread of the lockspace's own runs them, or the caller does: it waits until ``fileno()`` is readable and
calls ``dispatch()`` (the poll model of libdlm).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable

from dlm.errors import InvalidRequest

__all__ = ["Callbacks"]

IDLE_S = 5.0  #: a thread that has had nothing to do for so long ends; the next callback starts another

_log = logging.getLogger("dlm")


class Callbacks:
    """A queue of calls without a bound: completions are never dropped (A2); advice is merged by who adds it (B9).

    Thread-safe. ``add`` never blocks.
    """

    def __init__(self, poll: bool) -> None:
        self._poll = poll
        self._due: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._running = threading.RLock()  #: one at a time; but a callback may dispatch
        self._thread: threading.Thread | None = None
        self._closed = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if poll else (-1, -1)

    def add(self, call: Callable[[], object]) -> None:
        """Let ``call`` run after all that were added before."""
        with self._changed:
            if self._closed:
                return  # B10
            self._due.append(call)
            if self._poll:
                if len(self._due) == 1:
                    os.write(self._writer, b"!")
                return
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dlm-callbacks", daemon=True)
                self._thread.start()

    def fileno(self) -> int:
        """Readable while callbacks wait for ``dispatch``. Raises ``InvalidRequest`` where a thread runs them."""
        if not self._poll or self._closed:
            raise InvalidRequest("callbacks are run by a thread here, or not any more: there is nothing to poll")
        return self._reader

    def dispatch(self) -> int:
        """Run what waits now, in this thread; returns how many. What a callback raises is raised here, and the rest
        still waits.
        """
        with self._running:
            self.fileno()
            with self._changed:
                rest = len(self._due)
            done = 0
            while done < rest and (call := self._next()) is not None:
                done += 1
                call()
            return done

    def close(self) -> None:
        """Nothing runs from now on but what runs already. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._due.clear()
            self._changed.notify()
            if self._poll:
                os.close(self._writer)
                os.close(self._reader)

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            if not self._due:
                return None
            call = self._due.popleft()
            if self._poll and not self._due:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._reader, 64)
            return call

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._due and not self._closed:
                    self._changed.wait(IDLE_S)
                if not self._due:
                    self._thread = None
                    return
            call = self._next()
            if call is not None:
                try:
                    call()
                except Exception:  # noqa: BLE001 - the application's code; the next callback must still run
                    _log.exception("a callback failed")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # also where the constructor has failed
            self.close()
