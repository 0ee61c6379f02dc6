"""A client process of the soak test: takes locks on random names, counts under them, and writes its history.

It is deterministic up to timing: what it wants comes from its seed. Besides its short rounds it keeps one lock
for seconds, if it can get one, so that whatever happens to a node happens to a holder. It ends when it has
counted as often as it was told to, or after the round in which SIGTERM came.
"""

from __future__ import annotations

import argparse
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
from dlm.testing.histories import Event, What
from dlm.testing.soak.counter import FencedCounter, Refused
from vsync import ipc
from vsync.clock import boot_us
from vsync.errors import NotConnected

__all__ = ["Worker", "lock_name", "main"]

HOT = 0  #: number of the name that everybody wants
HOT_SHARE = 0.25
OWN_SHARE = 0.35  #: of the names that only this client prefers: they become private to its node
OWN_NAMES = 8
READERS = 0.1
PATIENCE_S = 8.0
RETRY_S = 0.02
CHECK_S = 0.005
WATCH_S = 0.02
KEEP_S = 4.0
KEPT_NAMES = 3  #: the last names: locks on them are kept for seconds
MOVE_AFTER = 150  #: rounds, on average, until a client goes to another node without need


def lock_name(number: int) -> str:
    """The name of a lock, and of its counter's file."""
    return f"n{number:02}"


class History:
    """The file in which a client writes down what it does and is told, line by line, as it happens."""

    def __init__(self, client: str, path: Path) -> None:
        self._client = client
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: What, number: int, t: int | None = None, **fields: Any) -> None:
        """Write an event of round ``number``, by default as of now."""
        event = Event(boot_us() if t is None else t, self._client, what, number, **fields)
        os.write(self._fd, event.line())


class Session(NamedTuple):
    """With one node."""

    node: str
    channel: ipc.SocketChannel
    locks: dlm.Client


class Round:
    """One request, and if it is granted, the work under the lock."""

    def __init__(self, number: int, history: History, chance: random.Random, counter: FencedCounter) -> None:
        self.counted = False
        self._number = number
        self._history = history
        self._chance = chance
        self._counter = counter
        self._held: dlm.Held | None = None
        self._channel: ipc.SocketChannel | None = None
        self._value = 0
        self._lost = ""  #: the reason of the loss that was noted last, if the lock has not been seen since

    def acquire(self, session: Session, mode: dlm.Mode, timeout: float) -> bool:
        """Ask for the lock; whether it was granted."""
        name = self._counter.path.name
        self._note(What.ASK, name=name, mode=mode.name, node=session.node)
        try:
            self._held = session.locks.acquire(name, mode, timeout)
        except (dlm.LockTimeout, dlm.NotConnected, dlm.LockLost) as error:
            self._note(What.FAILED, reason=_reason(error, timeout))
            return False
        self._channel = session.channel
        self._note(What.GRANTED, fence=self._held.fence, deadline=self._deadline())
        return True

    @property
    def held(self) -> dlm.Held:
        """The lock."""
        assert self._held is not None
        return self._held

    def work(self) -> None:
        """Use the lock: read or count. Usually that takes no time, sometimes a moment."""
        try:
            if self.held.mode is dlm.Mode.PR:
                self._read()
                self._dawdle()
                self._read()
            else:
                self.begin()
                self._dawdle()
                self.count()
        except Refused as refused:
            self.refused(refused)
        self.release()

    def begin(self) -> None:
        """Read the counter in order to write it. Raises ``Refused``."""
        self._value = self._counter.begin(self.held.fence)
        self._note(What.READ, value=self._value)

    def count(self) -> None:
        """Write the next value. Raises ``Refused``.

        After a loss an honest client stops. A slow one does not know yet: then the fence must decide.
        """
        if not self.still_held() and self._chance.random() < 0.5:
            return
        self._note(What.TRY, value=self._value + 1)
        self._counter.write(self._value + 1, self.held.fence)
        self._note(What.WROTE, value=self._value + 1)
        self.counted = True
        if self._chance.random() < 0.05:
            self._look_on()

    def finish(self) -> None:
        """``count`` and ``release``, for a lock that was kept."""
        try:
            self.count()
        except Refused as refused:
            self.refused(refused)
        self.release()

    def still_held(self) -> bool:
        """Check the lock and note what comes out; half of the time a lease that has run out is waited for."""
        if self.check():
            return True
        if self.held.lost.reason != "lease" or self._chance.random() < 0.5:
            return False
        limit = time.monotonic() + PATIENCE_S
        while self.held.lost.reason == "lease" and time.monotonic() < limit:
            time.sleep(CHECK_S)
        return self.check()

    def release(self) -> None:
        """Give it back."""
        t = boot_us()
        try:
            self.held.release()
        except dlm.LockLost as lost:
            self._note(What.LOST, reason=lost.reason)
        else:
            self._note(What.RELEASE, t=t)

    def check(self) -> bool:
        """Whether it is held at this moment; a change is noted, and that it is held always."""
        # Read before, so that a lock is never said to be held for longer than it was.
        t, deadline = boot_us(), self._deadline()
        try:
            self.held.check()
        except dlm.LockLost as lost:
            if self._lost != lost.reason:
                self._lost = lost.reason
                self._note(What.LOST, reason=lost.reason)
            return False
        self._lost = ""
        self._note(What.VALID, t=t, deadline=deadline)
        return True

    def _read(self) -> None:
        self._note(What.READ, value=self._counter.look(self.held.fence))

    def _dawdle(self) -> None:
        for _ in range(2 if self._chance.random() < 0.1 else 0):
            time.sleep(CHECK_S)
            if not self.still_held():
                return

    def _look_on(self) -> None:
        """Let readers in, and read what was written."""
        if not self.still_held():
            return
        self._note(What.CONVERT, mode="PR")
        try:
            self.held.convert(dlm.Mode.PR, PATIENCE_S)
        except (dlm.LockTimeout, dlm.LockLost, dlm.NotConnected):
            return  # what has become of the lock comes out at its release
        self._read()

    def refused(self, refused: Refused) -> None:
        """The resource has seen a newer holder."""
        self._note(What.REFUSED, fence=refused.seen, valid=self.held.valid)

    def _deadline(self) -> int:
        """Until when the lease of this grant runs, as far as it is known now; 0 if it is of another one."""
        assert self._channel is not None
        generation, deadline = self._channel.lease_deadline()
        return deadline if generation == self.held.generation else 0

    def _note(self, what: What, *, t: int | None = None, **fields: Any) -> None:
        self._history.note(what, self._number, t, **fields)


class Worker:
    """One client. ``urls`` are the nodes' names and sockets, its own first."""

    def __init__(
        self, name: str, index: int, folder: Path, urls: Sequence[tuple[str, str]], names: int, seed: str
    ) -> None:
        self.name = name
        self.stopping = False
        self.done = 0  #: increments acknowledged
        self._urls = list(urls)
        self._folder = folder
        self._kept_names = range(max(names - KEPT_NAMES, 1), names)
        self._names = max(names - KEPT_NAMES, 1)
        self._own = [1 + (index * OWN_NAMES + i) % max(self._names - 1, 1) for i in range(OWN_NAMES)]
        self._chance = random.Random(seed)
        self._history = History(name, folder / f"{name}.history")
        self._rounds = 0
        self._session: Session | None = None
        self._keeping = threading.Lock()  #: guards the next two
        self._kept: Round | None = None
        self._kept_until = 0.0
        threading.Thread(target=self._watch, name="soak-watch", daemon=True).start()

    def run(self, rounds: int) -> None:
        """Until ``rounds`` increments are acknowledged, or ``stopping``."""
        while self.done < rounds and not self.stopping:
            session = self._session
            if session is None or session.locks.closed:
                self._connect()
            elif self._one_round(session):
                self._keep(session)
            else:
                self._disconnect()
        self._disconnect()

    # -- the session

    def _connect(self) -> None:
        """To the first node that answers."""
        self._disconnect()
        for node, url in self._urls:
            try:
                channel = ipc.connect(url, f"soak-{self.name}")
            except NotConnected:
                continue
            self._session = Session(node, channel, dlm.Client.over(channel))
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
        """Lock, read, increment, write, unlock; or look on with a reader's lock. False: try another node."""
        dice = self._chance.random
        mode = dlm.Mode.PR if dice() < READERS else dlm.Mode.PW if dice() < 0.05 else dlm.Mode.EX
        timeout = self._chance.choices((PATIENCE_S, dice() * 0.02, 0), (92, 4, 4))[0]  # most, a moment, or a try
        a_round = self._round(self._choose())
        if a_round.acquire(session, mode, timeout):
            a_round.work()
            self.done += a_round.counted
        elif timeout == PATIENCE_S:
            return False  # stopped, cut off, or in trouble
        return dice() * MOVE_AFTER >= 1

    def _choose(self) -> int:
        draw = self._chance.random()
        if draw < HOT_SHARE:
            return HOT
        if draw < HOT_SHARE + OWN_SHARE:
            return self._chance.choice(self._own)
        return self._chance.randrange(self._names)

    def _round(self, name: int) -> Round:
        self._rounds += 1
        return Round(self._rounds, self._history, self._chance, FencedCounter(self._folder / lock_name(name)))

    # -- the lock that is kept

    def _keep(self, session: Session) -> None:
        """Get a lock to keep, or give it back when it is time."""
        with self._keeping:
            kept, over = self._kept, time.monotonic() > self._kept_until
        if kept is not None:
            if over:
                self._give_up_kept()
        elif self._kept_names and self._chance.random() < 0.05:
            a_round = self._round(self._chance.choice(self._kept_names))
            if a_round.acquire(session, dlm.Mode.EX, self._chance.choice((0, 0.05))):
                self._begin_to_keep(a_round)

    def _begin_to_keep(self, a_round: Round) -> None:
        try:
            a_round.begin()
        except Refused as refused:
            a_round.refused(refused)
            a_round.release()
            return
        with self._keeping:
            self._kept, self._kept_until = a_round, time.monotonic() + self._chance.uniform(0.5, KEEP_S)

    def _give_up_kept(self) -> None:
        with self._keeping:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept.finish()
            self.done += kept.counted

    def _watch(self) -> None:
        """A thread: look at the kept lock all the time, also while the main thread waits for another one."""
        while True:
            time.sleep(WATCH_S)
            with self._keeping:
                if self._kept is not None:
                    self._kept.check()


def _reason(error: dlm.DLMError, timeout: float) -> str:
    if isinstance(error, dlm.LockLost):
        return f"lost: {error.reason}"
    if isinstance(error, dlm.NoQuorum):
        return "no quorum"
    if isinstance(error, dlm.NotConnected):
        return "not connected"
    return "timeout" if timeout == PATIENCE_S else "busy"


def main(argv: Sequence[str] | None = None) -> int:
    """What the soak test starts; not for people."""
    parser = argparse.ArgumentParser(prog="python -m dlm.testing.soak.client")
    parser.add_argument("--name", required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--names", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("urls", nargs="+", metavar="NODE=URL")
    args = parser.parse_args(argv)
    urls = [(node, url) for node, _, url in (each.partition("=") for each in args.urls)]
    worker = Worker(args.name, args.index, args.folder, urls, args.names, args.seed)

    def stop(number: int, frame: FrameType | None) -> None:
        worker.stopping = True

    signal.signal(signal.SIGTERM, stop)
    worker.run(args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
