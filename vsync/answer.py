"""The answer to a request, for the thread that waits for it: a future that one wake-up gives its result.

``Future`` tells everybody who might be interested, and runs callbacks, in the thread that brings the result. Most
answers are wanted by one thread that waits in ``result`` and by nobody else. To that one the result is *offered*:
it is laid down and the thread is woken, which then does the rest by itself. So whoever offers meets no code of the
program, and no lock that the program might hold.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol

__all__ = ["Answer", "Waiting", "taken_lock"]


class Waiting(Protocol):
    """How a thread waits for an answer."""

    def wait(self, answer: Answer, timeout: float | None) -> None:
        """Return when ``answer`` is over, or after ``timeout`` seconds."""

    def attend(self) -> None:
        """Somebody wants to be told by the future itself."""


class Answer(Future[Any]):
    """See the module. Thread-safe as ``Future`` is; one thread at a time offers."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__()
        self.plain = True  #: nobody but the thread that waits wants to be told
        self.quick = False  #: nor anybody but a callback that any thread may run
        self._step: Callable[[], bool] | None = None
        self.over = False  #: as ``done()``, without a lock
        self.thread = 0  #: the thread that waits for it, or has
        self.waited = False  #: it waits
        self.token: threading.Lock | None = None  #: released to wake that thread
        self._offered: tuple[Any, Exception | None] | None = None
        self._waiting = waiting

    def result(self, timeout: float | None = None) -> Any:
        """See ``Future.result``."""
        return super().result(self._waited(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See ``Future.exception``."""
        return super().exception(self._waited(timeout))

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """See ``Future.add_done_callback``."""
        self.quick = False
        self._tell_others()
        super().add_done_callback(fn)

    def add_quick_callback(self, fn: Callable[[Future[Any]], object], step: Callable[[], bool]) -> None:
        """The same for one that neither waits nor runs code of the program: the node's thread may run it, too.

        ``step`` is tried before, by any thread: if it returns true that is all that a success means here. It may be
        interrupted, and then is tried once more. No thread is woken to read for this alone.
        """
        self.quick = self.plain
        self._step = step
        self.plain = False
        self._accept()
        super().add_done_callback(fn)

    def done(self) -> bool:
        """See ``Future.done``."""
        self._accept()
        return super().done()

    def cancel(self) -> bool:
        """See ``Future.cancel``. A thread that reads while it waits for this hears of it with the next frame."""
        cancelled = super().cancel()
        if cancelled:
            self.over = True
            self.wake()
        return cancelled

    def offer(self, result: Any, error: Exception | None) -> bool:
        """Leave the result to the thread that waits, if one does; once more does no harm. False: settle it.

        It touches no condition: an interrupt of the thread that offers could not leave one locked.
        """
        if self._step is not None and error is None:
            return self._step()
        if not self.waited or not self.plain:
            return False
        self._offered = result, error
        self.over = True
        self.wake()
        return self.waited  # else it may have left without

    def settle(self, result: Any, error: Exception | None) -> None:
        """The answer is here; once more does no harm, nor after ``cancel``. Runs callbacks."""
        self.over = True  # first: callbacks ask for the result
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)
        self.wake()

    def wake(self) -> None:
        """Let the thread that waits look again."""
        if self.token is not None:
            with contextlib.suppress(RuntimeError):  # it was woken before and has not looked yet
                self.token.release()

    def _waited(self, timeout: float | None) -> float | None:
        """Wait, as the first one; what is left of ``timeout`` for the future itself."""
        if self.over:
            self._accept()
            return None
        if self.waited:  # by another thread: this one is told by the future
            self._tell_others()
            return timeout
        self.waited = True
        try:
            self._waiting.wait(self, timeout)
        finally:
            self.waited = False
            self._accept()
        return None if self.over else 0

    def _tell_others(self) -> None:
        self.plain = False
        self._accept()
        if not self.over:
            self._waiting.attend()

    def _accept(self) -> None:
        if self._offered is not None:
            self.settle(*self._offered)


def taken_lock() -> threading.Lock:
    """A lock for one thread to sleep on until another releases it."""
    lock = threading.Lock()
    lock.acquire()
    return lock
