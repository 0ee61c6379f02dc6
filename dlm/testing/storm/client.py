"""A client process of a storm: locks in all modes, converts, uses registers under its locks, and notes all of it.

Of some names it keeps a lock for seconds, so that whatever happens happens to a holder. Besides what it does under
its locks it checks them; the one that it keeps is looked at all the time by a thread. It is deterministic but for
timing: what it wants comes from its seed. It ends after the round in which SIGTERM came.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import dlm
from dlm.testing.calls import BUSY, PASSING, Notebook, Result, Verb, What
from dlm.testing.storm.names import OWN_NAMES, hot_name, kept_name, own_name
from dlm.testing.storm.registers import Registers, from_data, to_data
from vsync import ipc
from vsync.clock import boot_us
from vsync.errors import NotConnected

__all__ = ["Worker", "main"]

HOT_SHARE, OWN_SHARE = 0.6, 0.3  #: of the rounds; the rest goes to names on which others keep locks
HEIR_SHARE = 0.7  #: of the rounds of heirs goes to those, so that somebody waits when a holder fails
MODES = {dlm.Mode.EX: 42, dlm.Mode.PR: 20, dlm.Mode.PW: 12, dlm.Mode.CW: 12, dlm.Mode.CR: 10, dlm.Mode.NL: 4}
CONVERSIONS = 0.25
PATIENCE_S = 6.0
RETRY_S = 0.05
CHECK_S = 0.005
WATCH_S = 0.02
KEEP_S = 3.0
PUSH_S = 5.0  #: a loss must have been pushed to ``on_lost`` so long after it was noticed
MOVE_AFTER = 200  #: rounds, on average, until a client goes to another node without need
MILLION = 1_000_000


class Session(NamedTuple):
    """With one node."""

    node: str
    channel: ipc.SocketChannel
    locks: dlm.Client


class Book(Notebook):
    """The notes of this client, with numbers for its operations and handles."""

    def __init__(self, client: str, path: Path, number: int) -> None:
        super().__init__(client, path)
        self.ops = itertools.count(1)
        self.handles = itertools.count(1)
        self.values = itertools.count(number * MILLION)  #: nobody else writes them

    def call(self, verb: Verb, handle: int, **fields: Any) -> int:
        """Something is about to be done; returns its number."""
        op = next(self.ops)
        self.write(What.CALL, op=op, verb=verb, handle=handle, **fields)
        return op

    def answer(self, op: int, result: Result, **fields: Any) -> None:
        """It is over."""
        self.write(What.RETURN, op=op, result=result, **fields)


class Grip:
    """One request for a lock, and what is done with it and with the register of its name."""

    def __init__(
        self, book: Book, chance: random.Random, session: Session, name: str, registers: Registers
    ) -> None:
        self.name = name
        self.pushed = threading.Event()  #: ``on_lost`` has been called
        self.gone = False  #: noticed to be lost for good
        self._book = book
        self._chance = chance
        self._session = session
        self._handle = next(book.handles)
        self._register = registers[name]
        self._checking = threading.Lock()  #: one at a time, and noted in that order; guards the next
        self._lost = ""  #: the reason of the loss that was noted last, if the lock has not been seen since
        self._held: dlm.Held | None = None

    @property
    def held(self) -> dlm.Held:
        """The lock."""
        assert self._held is not None
        return self._held

    # -- the lock

    def acquire(self, mode: dlm.Mode, timeout: float, keep: bool = False) -> bool:
        """Ask for it; whether it was granted. ``keep``: a loss is to be pushed."""
        op = self._book.call(
            Verb.ACQUIRE, self._handle, name=self.name, mode=mode.name, node=self._session.node, patient=timeout > 0
        )
        try:
            on_lost = self._on_lost if keep else None
            self._held = self._session.locks.acquire(self.name, mode, timeout, on_lost=on_lost)
        except (dlm.LockError, dlm.NotConnected) as error:
            self._book.answer(op, Result.NO, reason=_reason(error, timeout))
            return False
        self._book.answer(
            op, Result.OK, mode=self._held.mode.name, fence=self._held.fence, deadline=self._deadline()
        )
        return True

    def convert(self, mode: dlm.Mode, timeout: float) -> bool:
        """Ask for another mode; whether the lock can still be used."""
        op = self._book.call(Verb.CONVERT, self._handle, mode=mode.name, patient=timeout > 0)
        try:
            self.held.convert(mode, timeout)
        except (dlm.LockTimeout, dlm.Deadlock) as error:
            decided = not self.held.converting
            self._book.answer(op, Result.NO if decided else Result.UNKNOWN, reason=_reason(error, timeout))
            return decided
        except (dlm.LockError, dlm.NotConnected) as error:
            self._book.answer(op, Result.UNKNOWN, reason=_reason(error, timeout))
            return False
        self._book.answer(op, Result.OK, mode=self.held.mode.name, fence=self.held.fence)
        return True

    def release(self) -> None:
        """Give it back."""
        op = self._book.call(Verb.RELEASE, self._handle)
        try:
            self.held.release()
        except dlm.LockLost as lost:
            self.gone = self.gone or lost.reason not in PASSING
            self._book.answer(op, Result.NO, reason=lost.reason)
        else:
            self._book.answer(op, Result.OK)

    def check(self) -> bool:
        """Whether it is held at this moment. That is noted, or a change for the worse."""
        with self._checking:
            # Read before, so that a lock is never said to be held for longer than it was.
            t, deadline = boot_us(), self._deadline()
            try:
                self.held.check()
            except dlm.LockLost as lost:
                if self._lost != lost.reason:
                    self._lost, self.gone = lost.reason, lost.reason not in PASSING
                    self._book.write(What.LOST, handle=self._handle, reason=lost.reason, deadline=self._deadline())
                return False
            self._lost = ""
            self._book.write(What.SEEN, t, handle=self._handle, deadline=deadline)
            return True

    def still_held(self) -> bool:
        """Check; half of the time a lease that has run out is waited for."""
        if self.check():
            return True
        limit = time.monotonic() + PATIENCE_S
        if self._chance.random() < 0.5:
            while self.held.lost.reason in PASSING and time.monotonic() < limit:
                time.sleep(CHECK_S)
        return self.check()

    def _on_lost(self, held: dlm.Held, reason: str) -> None:
        self.pushed.set()

    def _deadline(self) -> int:
        """Until when the lease of this grant runs, as far as it is known now; 0 if it is of another one."""
        generation, deadline = self._session.channel.lease_deadline()
        return deadline if generation == self.held.generation else 0

    # -- the register; its answers may come after a loss, that is what fences are for

    def use(self) -> None:
        """Do what the mode is for."""
        mode = self.held.mode
        if mode in dlm.held.WRITERS:
            self.open()
            self._dawdle()
            if self.still_held() or self._chance.random() < 0.5:  # an honest client stops; a slow one cannot know
                self.write()
        elif mode is not dlm.Mode.NL:
            self._touch(Verb.READ)
            self._dawdle()
            self._touch(Verb.READ)

    def open(self) -> None:
        """Read it in order to write it."""
        self._touch(Verb.OPEN)

    def write(self) -> None:
        """Write a value that nobody else writes."""
        self._touch(Verb.WRITE)

    def _touch(self, verb: Verb) -> None:
        fence = self.held.fence
        given = next(self._book.values) if verb is Verb.WRITE else 0
        op = self._book.call(verb, self._handle, name=self.name, fence=fence, value=given)
        data = b""
        try:
            if verb is Verb.WRITE:
                self._register.write(fence, to_data(given))
            else:
                data = self._register.claim(fence) if verb is Verb.OPEN else self._register.read(fence)
        except dlm.StaleFence:
            self._book.answer(op, Result.NO)
        else:
            self._book.answer(op, Result.OK, value=from_data(data))

    def _dawdle(self) -> None:
        for _ in range(3 if self._chance.random() < 0.15 else 0):
            time.sleep(CHECK_S)
            self.check()


class Worker:
    """One client. ``urls`` are the nodes' names and sockets, its own first; ``pace`` is the mean pause between
    rounds, in seconds.
    """

    def __init__(
        self, name: str, index: int, number: int, folder: Path, urls: Sequence[tuple[str, str]], hot: int,
        kept: int, seed: str, pace: float,
    ) -> None:  # fmt: skip
        self.name = name
        self.stopping = False
        self._index = index
        self._heir = index > 0 and index % 2 == 0  #: keeps nothing, but waits for what others keep
        self._urls = list(urls)
        self._registers = Registers(folder)
        self._hot, self._kept_names = hot, kept
        self._pace = pace
        self._chance = random.Random(seed)
        self._book = Book(name, folder / f"{name}.notes", number)
        self._session: Session | None = None
        self._keeping = threading.Lock()  #: guards the next two
        self._kept: Grip | None = None
        self._kept_until = 0.0
        threading.Thread(target=self._watch, name="storm-watch", daemon=True).start()

    def run(self) -> None:
        """Until ``stopping``."""
        while not self.stopping:
            session = self._session
            if session is None or session.locks.closed:
                self._connect()
            elif self._one_round(session):
                self._keep(session)
                time.sleep(self._chance.expovariate(1 / self._pace))
            else:
                self._disconnect()
        self._disconnect()

    # -- the session

    def _connect(self) -> None:
        """To the first node that answers."""
        self._disconnect()
        for node, url in self._urls:
            try:
                channel = ipc.connect(url, f"storm-{self.name}")
                self._session = Session(node, channel, dlm.Client.over(channel))
            except (NotConnected, dlm.NotConnected):
                continue
            return
        time.sleep(RETRY_S)  # no daemon at all: look again

    def _disconnect(self) -> None:
        """Leave the node; another one is tried first next time."""
        self._give_up_kept()
        if self._session is not None:
            self._session.locks.close()
            self._session = None
            self._urls.append(self._urls.pop(0))

    # -- rounds

    def _one_round(self, session: Session) -> bool:
        """Lock, use, convert, use, unlock. False: try another node."""
        dice = self._chance.random
        mode = self._chance.choices(list(MODES), list(MODES.values()))[0]
        timeout = self._chance.choices((PATIENCE_S, 0.001 + dice() * 0.02, 0), (90, 4, 6))[0]
        grip = Grip(self._book, self._chance, session, self._choose(), self._registers)
        if grip.acquire(mode, timeout):
            grip.use()
            usable = True
            while usable and dice() < CONVERSIONS:
                usable = grip.convert(self._chance.choice(list(MODES)), self._chance.choice((PATIENCE_S, 0.02, 0)))
                if usable and grip.check():
                    grip.use()
            grip.release()
        elif timeout == PATIENCE_S:
            return False  # stopped, cut off, or in trouble
        return dice() * MOVE_AFTER >= 1

    def _choose(self) -> str:
        draw = self._chance.random()
        if self._heir:
            draw = draw / (1 - HEIR_SHARE) * (OWN_SHARE + HOT_SHARE)
        if draw < OWN_SHARE:
            return own_name(self._index, self._chance.randrange(OWN_NAMES))
        if draw < OWN_SHARE + HOT_SHARE:
            return hot_name(self._chance.randrange(self._hot))
        return kept_name(self._chance.randrange(self._kept_names))

    # -- the lock that is kept

    def _keep(self, session: Session) -> None:
        """Get a lock to keep, or give it back when it is time."""
        with self._keeping:
            kept, over = self._kept, time.monotonic() > self._kept_until
        if kept is not None:
            if over:
                self._give_up_kept()
        elif not self._heir and self._chance.random() < 0.1:
            name = kept_name(self._chance.randrange(self._kept_names))
            grip = Grip(self._book, self._chance, session, name, self._registers)
            mode = self._chance.choice((dlm.Mode.EX, dlm.Mode.EX, dlm.Mode.PR))
            if grip.acquire(mode, self._chance.choice((0, 0.05)), keep=True):
                with self._keeping:
                    self._kept = grip
                    self._kept_until = time.monotonic() + self._chance.uniform(0.5, KEEP_S)
                grip.use()

    def _give_up_kept(self) -> None:
        with self._keeping:
            kept, self._kept = self._kept, None
        if kept is not None:
            if kept.check():
                kept.use()
            if kept.gone and not kept.pushed.wait(PUSH_S):
                raise RuntimeError(f"{self.name}: the loss of {kept.held!r} was never pushed to on_lost")
            kept.release()

    def _watch(self) -> None:
        """A thread: look at the kept lock all the time, also while the main thread waits for another one."""
        while True:
            time.sleep(WATCH_S)
            with self._keeping:
                if self._kept is not None:
                    self._kept.check()


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, dlm.LockTimeout):
        return BUSY if timeout == 0 else "timeout"
    if isinstance(error, dlm.LockLost):
        return f"lost: {error.reason}"
    return type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """What a storm starts; not for people."""
    parser = argparse.ArgumentParser(prog="python -m dlm.testing.storm.client")
    parser.add_argument("--name", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    for key in ("index", "number", "hot", "kept"):
        parser.add_argument(f"--{key}", type=int, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--pace", type=float, required=True)
    parser.add_argument("urls", nargs="+", metavar="NODE=URL")
    args = parser.parse_args(argv)
    urls = [(node, url) for node, _, url in (each.partition("=") for each in args.urls)]
    worker = Worker(
        args.name, args.index, args.number, args.folder, urls, args.hot, args.kept, args.seed, args.pace
    )

    def stop(number: int, frame: FrameType | None) -> None:
        worker.stopping = True

    signal.signal(signal.SIGTERM, stop)
    worker.run()
    os._exit(0)  # without the threads, which may be in the middle of anything


if __name__ == "__main__":
    sys.exit(main())
