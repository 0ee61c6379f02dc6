"""A client process of the soak test: takes locks on random names, counts under them, and writes its history.

It is deterministic up to timing: what it wants comes from its seed. It ends when it has counted as often as it
was told to, or after the round in which SIGTERM came.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import dlm
from dlm.testing.histories import Event, What
from dlm.testing.soak.counter import FencedCounter, Refused
from vsync import ipc
from vsync.clock import boot_us
from vsync.errors import NotConnected

__all__ = ["HOT", "Worker", "lock_name", "main"]

HOT = 0  #: number of the name that everybody wants
HOT_SHARE = 0.25
OWN_SHARE = 0.35  #: of the names that only this client prefers: they become private to its node
OWN_NAMES = 8
READERS = 0.1
PATIENCE_S = 8.0
RETRY_S = 0.02
CHECK_S = 0.005
MOVE_AFTER = 150  #: rounds, on average, until a client goes to another node without need


def lock_name(number: int) -> str:
    """The name of a lock, and of its counter's file."""
    return f"n{number:02}"


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
        self._names = names
        self._own = [1 + (index * OWN_NAMES + i) % max(names - 1, 1) for i in range(OWN_NAMES)]
        self._random = random.Random(seed)
        self._history = os.open(folder / f"{name}.history", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._round = 0
        self._node = ""
        self._channel: ipc.SocketChannel | None = None
        self._locks: dlm.Client | None = None

    def run(self, rounds: int) -> None:
        """Until ``rounds`` increments are acknowledged, or ``stopping``."""
        while self.done < rounds and not self.stopping:
            if self._locks is None or self._locks.closed:
                self._connect()
            else:
                self._one_round(self._locks)
        if self._locks is not None:
            self._locks.close()

    # -- the session

    def _connect(self) -> None:
        """To the first node that answers."""
        self._disconnect()
        for node, url in self._urls:
            try:
                self._channel = ipc.connect(url, f"soak-{self.name}")
            except NotConnected:
                continue
            self._node, self._locks = node, dlm.Client.over(self._channel)
            return
        time.sleep(RETRY_S)  # no daemon at all: look again

    def _disconnect(self) -> None:
        """Leave the node; another one is tried first next time."""
        if self._locks is not None:
            self._locks.close()
        self._locks = None
        self._urls.append(self._urls.pop(0))

    # -- a round

    def _one_round(self, locks: dlm.Client) -> None:
        """One request; if it is granted, work under the lock."""
        self._round += 1
        dice = self._random.random
        name = lock_name(self._choose())
        mode = dlm.Mode.PR if dice() < READERS else dlm.Mode.PW if dice() < 0.05 else dlm.Mode.EX
        timeout = self._random.choices((PATIENCE_S, 0.02, 0), (92, 4, 4))[0]
        self._note(What.ASK, name=name, mode=mode.name, node=self._node)
        try:
            held = locks.acquire(name, mode, timeout)
        except (dlm.LockTimeout, dlm.NotConnected, dlm.LockLost) as error:
            self._note(What.FAILED, reason=_reason(error, timeout))
            if timeout == PATIENCE_S:  # stopped, cut off, or in trouble: try elsewhere
                self._disconnect()
            return
        # Before anything is relied upon the time is read, so that a lock is never said to be held for longer.
        self._note(What.GRANTED, fence=held.fence, deadline=self._deadline(held))
        counter = FencedCounter(self._folder / name)
        try:
            self._under_lock(held, counter)
        except Refused as refused:
            self._note(What.REFUSED, fence=refused.seen, valid=held.valid)
            self._release(held)
        if dice() * MOVE_AFTER < 1:
            self._disconnect()

    def _choose(self) -> int:
        draw = self._random.random()
        if draw < HOT_SHARE:
            return HOT
        if draw < HOT_SHARE + OWN_SHARE:
            return self._random.choice(self._own)
        return self._random.randrange(self._names)

    def _under_lock(self, held: dlm.Held, counter: FencedCounter) -> None:
        if held.mode is dlm.Mode.PR:
            self._note(What.READ, value=counter.look(held.fence))
            self._work(held)
            self._note(What.READ, value=counter.look(held.fence))
        else:
            value = counter.begin(held.fence)
            self._note(What.READ, value=value)
            self._work(held)
            # After a loss an honest client stops. A slow one does not know yet: then the fence must decide.
            if self._still_held(held) or self._random.random() < 0.5:
                self._increment(held, counter, value + 1)
                if self._random.random() < 0.05:
                    self._look_on(held, counter)
        self._release(held)

    def _work(self, held: dlm.Held) -> None:
        """Usually nothing; sometimes a moment, seldom longer than a lease."""
        draw = self._random.random()
        for _ in range(0 if draw > 0.1 else 2 if draw > 0.003 else self._random.randrange(50, 300)):
            time.sleep(CHECK_S)
            if not self._still_held(held):
                return

    def _increment(self, held: dlm.Held, counter: FencedCounter, value: int) -> None:
        self._note(What.TRY, value=value)
        counter.write(value, held.fence)
        self._note(What.WROTE, value=value)
        self.done += 1

    def _look_on(self, held: dlm.Held, counter: FencedCounter) -> None:
        """Let readers in, and read what was written."""
        if not self._still_held(held):
            return
        self._note(What.CONVERT, mode="PR")
        try:
            held.convert(dlm.Mode.PR, PATIENCE_S)
        except (dlm.LockTimeout, dlm.LockLost, dlm.NotConnected):
            return  # what has become of the lock comes out at its release
        self._note(What.READ, value=counter.look(held.fence))

    def _still_held(self, held: dlm.Held) -> bool:
        """Check the lock and note what comes out; half of the time a lease that has run out is waited for."""
        t, deadline = boot_us(), self._deadline(held)
        try:
            held.check()
        except dlm.LockSuspended as lost:
            self._note(What.LOST, reason=lost.reason)
            return self._random.random() < 0.5 and self._resumed(held)
        except dlm.LockLost as lost:
            self._note(What.LOST, reason=lost.reason)
            return False
        self._note(What.VALID, t=t, deadline=deadline)
        return True

    def _resumed(self, held: dlm.Held) -> bool:
        """Wait for the lease to be renewed, or for the lock to be lost for good."""
        limit = time.monotonic() + PATIENCE_S
        while time.monotonic() < limit and not self.stopping:
            t, deadline = boot_us(), self._deadline(held)
            try:
                held.check()
            except dlm.LockSuspended:
                time.sleep(CHECK_S)
            except dlm.LockLost as lost:
                self._note(What.LOST, reason=lost.reason)
                return False
            else:
                self._note(What.VALID, t=t, deadline=deadline)
                return True
        return False

    def _release(self, held: dlm.Held) -> None:
        t = boot_us()
        try:
            held.release()
        except dlm.LockLost as lost:
            self._note(What.LOST, reason=lost.reason)
        else:
            self._note(What.RELEASE, t=t)

    # -- the history

    def _deadline(self, held: dlm.Held) -> int:
        """Until when the lease of this grant runs, as far as it is known now; 0 if it is of another one."""
        assert self._channel is not None
        generation, deadline = self._channel.lease_deadline()
        return deadline if generation == held.generation else 0

    def _note(self, what: What, *, t: int | None = None, **fields: Any) -> None:
        event = Event(boot_us() if t is None else t, self.name, what, self._round, **fields)
        os.write(self._history, event.line())


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
