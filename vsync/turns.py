"""Who reads what comes from the node: the thread that waits for an answer, or the channel's reader thread.

A call that hands its answer from one thread to another costs two wake-ups and more, several times what the answer
itself does. So a thread that waits reads by itself: one *leads*, others *follow* until it has read their answers
or leaves. What runs code of the program – pushes, callbacks of futures, the end of the session – is done by the
reader thread alone: whoever leads and finds such a thing hands over to it.

The reader thread rests while callers come and go, looks again every ``ASIDE_S``, and reads when nobody else
does. It stays where pushes or callbacks are frequent: it rests only after ``RUN`` answers in a row for callers.

A leader may be interrupted between any two steps (``KeyboardInterrupt``). Nothing is lost by that: a frame is
looked at, dealt with – which may be done twice – and only then taken; and who leads stands in one place, where
a caller that leaves finds whether it was it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from vsync.answer import taken_lock

__all__ = ["Source", "Turns", "Waiter"]

ASIDE_S = 0.002  #: a reader thread that rests looks so often whether anybody reads
RUN = 8  #: frames that threads waited for, with nothing between that the reader thread has to do: then it rests
_SEAT = 0


class _ReaderThread:
    """In the seat: the reader thread."""

    thread = 0
    token: threading.Lock | None = None
    over = False

    def wake(self) -> None:
        """It is nudged instead."""


_READER: Waiter = _ReaderThread()


class Source(Protocol):
    """What is read. Used by one thread at a time."""

    def peek(self) -> Any:
        """The next frame, which stays; ``None`` if there is none. Raises ``ProtocolError``."""
        ...

    def take(self) -> None:
        """The frame that was looked at is dealt with."""
        ...

    def more(self, patience: float | None) -> None:
        """Wait for more, at most so many seconds. Raises ``OSError`` or ``EOFError`` at the end."""
        ...


class Waiter(Protocol):
    """What a thread waits for: an ``Answer``, or something to arrive."""

    thread: int
    token: threading.Lock | None

    @property
    def over(self) -> bool:
        """It need not wait any longer."""
        ...

    def wake(self) -> None:
        """Let the thread look again, if it sleeps on the token."""


class Turns:
    """Who reads ``source``.

    ``settle`` deals with a frame that any thread may deal with, and says whether it was one; it may be called twice
    for the same. ``handle`` deals with any other frame, on the reader thread, which calls ``run``.
    """

    def __init__(self, source: Source, settle: Callable[[Any], bool], handle: Callable[[Any], None]) -> None:
        self._source = source
        self._settle = settle
        self._handle = handle
        self._reader = 0  # the thread's number
        self._seat: dict[int, Waiter] = {}  # at _SEAT who reads; a dict, for its setdefault cannot be interrupted
        self._following: dict[Waiter, None] = {}
        self._leads = 0  # how often a caller has read ..
        self._terms = 0  # .. and how often one has begun to
        self._wanted = False  # the reader thread is to read, if nobody else does
        self._run = 0  # answers since the reader thread last had something to do
        self._nudge = taken_lock()
        self._sleeping = False  # the reader thread does not look by itself

    # -- callers

    def wait(self, answer: Waiter, timeout: float | None) -> None:
        """Return when ``answer`` is done, or after ``timeout`` seconds."""
        limit = None if timeout is None else time.monotonic() + timeout
        answer.thread = threading.get_ident()
        if answer.thread == self._reader:
            self._read_on(answer, limit)
            return
        try:
            while not answer.over:
                leader = self._seat.setdefault(_SEAT, answer)
                if leader is answer:
                    self._terms += 1
                    if not self._lead(answer, limit):
                        break
                elif leader is not _READER and leader.thread == answer.thread:
                    raise RuntimeError("a signal handler cannot wait for the node while what it interrupts does")
                elif not self._follow(answer, limit):
                    break
        except BaseException:  # interrupted: perhaps when the reader thread had the seat and did not know it yet
            self._wake_reader()
            raise
        finally:
            try:
                self._leave(answer)
            except BaseException:  # interrupted: nobody else can give up this seat
                self._leave(answer)
                raise

    def attend(self) -> None:
        """The reader thread is needed: now, if nobody reads."""
        if not self._seat:
            self._wanted = True
            self._wake_reader()

    def end(self) -> None:
        """The session has ended: the reader thread is to look at once."""
        self._wanted = True
        self._wake_reader()

    def _lead(self, answer: Waiter, limit: float | None) -> bool:
        """Read until ``answer`` is done or only the reader thread can go on; false when time is over."""
        source = self._source
        try:
            while True:
                while (frame := source.peek()) is not None:
                    if not self._settle(frame):
                        self._hand_over()
                        return True
                    source.take()
                if answer.over:
                    return True
                rest = None if limit is None else limit - time.monotonic()
                if rest is not None and rest <= 0:
                    return False
                self._leads += 1
                source.more(rest)
        except Exception:  # noqa: BLE001 - the reader thread meets the same, and ends the session
            self._hand_over()
            return True

    def _hand_over(self) -> None:
        self._run = 0
        self._seat[_SEAT] = _READER
        self._wake_reader()

    def _follow(self, answer: Waiter, limit: float | None) -> bool:
        """Wait until there is something to look at; false when time is over."""
        if answer.token is None:
            answer.token = taken_lock()
        self._following[answer] = None
        if answer.over or not self._seat:  # meanwhile; from now on whoever leaves sees the token
            return True
        if limit is None:
            answer.token.acquire()
            return True
        rest = min(limit - time.monotonic(), threading.TIMEOUT_MAX)
        return rest > 0 and answer.token.acquire(timeout=rest)

    def _leave(self, answer: Waiter) -> None:
        self._following.pop(answer, None)
        if self._seat.get(_SEAT) is answer:
            self._seat.pop(_SEAT, None)
        if not self._seat:  # also if another has left it and meant this one to go on
            self._pass_on()
        if self._sleeping:
            self._wake_reader()

    def _pass_on(self) -> None:
        for follower in list(self._following):
            if not follower.over:
                follower.wake()
                return

    # -- the reader thread

    def run(self) -> None:
        """Read when no caller does, until something is raised: the end of the session, by ``source`` or a handler.
        From then on nobody else reads.
        """
        self._reader = threading.get_ident()
        leads, terms = self._leads, 0
        while True:
            reads = self._seat.get(_SEAT)
            if reads is None and (self._wanted or self._leads == leads):
                self._wanted = False
                reads = self._seat.setdefault(_SEAT, _READER)
            if reads is _READER:
                self._read()
                reads = None
            for_long = reads is not None and terms == self._terms
            leads, terms = self._leads, self._terms
            self._rest(reads if for_long else None)
            if for_long:
                leads = -1  # it has just left, and may be back soon

    def _read(self) -> None:
        source = self._source
        while True:
            settled = False
            while (frame := source.peek()) is not None:
                waited = bool(self._following)
                settled = self._settle(frame)
                source.take()
                self._run = self._run + waited if settled else 0
                if not settled:
                    self._handle(frame)
            if settled and self._run >= RUN:
                self._seat.pop(_SEAT, None)
                self._pass_on()
                return
            source.more(None)

    def _read_on(self, answer: Waiter, limit: float | None) -> None:
        """A handler makes a call: what comes before the answer is handled meanwhile."""
        while not answer.over:
            frame = self._source.peek()
            if frame is not None:
                settled = self._settle(frame)
                self._source.take()
                if not settled:
                    self._handle(frame)
                continue
            rest = None if limit is None else limit - time.monotonic()
            if rest is not None and rest <= 0:
                return
            self._source.more(rest)

    def _rest(self, leader: Waiter | None) -> None:
        """Wait until it is time to look. ``leader``: one that may lead for long, and tells when it leaves."""
        if leader is None:
            self._nudge.acquire(timeout=ASIDE_S)
            return
        self._sleeping = True
        try:
            self._nudge.acquire(timeout=-1 if self._seat.get(_SEAT) is leader else ASIDE_S)
        finally:
            self._sleeping = False

    def _wake_reader(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was woken before and has not looked yet
            self._nudge.release()
