"""The lock manager's act of ``vsync demo``, and the program that its clients run (``python -m dlm.demo``).

One client per node takes turns on one lock. The node whose client holds it is killed; the client is told,
the lock goes to the next waiter with a higher fence, the node is restarted, and its client gets its turn
again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dlm
from vsync.clock import boot_us
from vsync.demo import ActFailed, Stage
from vsync.testcluster import die_with_parent

__all__ = ["act", "check_turns"]

NAME = "demo/printer"
HOLD_S = 0.4
RETRY_S = 0.1
ROUNDS = 3  #: turns before the kill
PATIENCE_S = 12.0  #: for each step of the story


@dataclass(slots=True)
class Turn:
    """One client's time with the lock, on the boot-time clock of this host."""

    node: str
    fence: int
    began_us: int
    ended_us: int | None = None


def act(stage: Stage) -> None:
    """Play it. Raises ``ActFailed`` with what did not happen, or if two clients held the lock at once."""
    stage.say("demo", f"one client per node takes turns on the lock {NAME!r}")
    stage.say("demo", "after a start the first grant waits until no older lease can be valid (2 s)")
    with _lockers(stage) as story:
        victim = _kill_a_holder(stage, story)
        story.until(lambda: victim.ended_us is not None, f"the client of {victim.node} was not told of its loss")
        stage.say("demo", f"nobody gets the lock before the lease of {victim.node} has run out")
        others = [name for name in stage.cluster.names if name != victim.node]
        story.until(lambda: story.turns[-1].node != victim.node, "nobody else got the lock")
        heir = story.turns[-1]
        moved = f"the lock moved from {victim.node} to {heir.node}"
        stage.say("demo", f"{moved}, its fence rose by {heir.fence - victim.fence}")
        stage.cluster.wait_view(others)
        stage.say("demo", f"restarting node {victim.node}")
        stage.cluster.restart(victim.node)
        story.until(lambda: story.turns[-1].node == victim.node, f"the client of {victim.node} got no turn again")
        stage.cluster.wait_view(stage.cluster.names)
    check_turns(story.turns)
    stage.say("demo", f"{len(story.turns)} turns, never two holders, every fence higher than the one before")


def check_turns(turns: list[Turn]) -> None:
    """Raises ``ActFailed`` if two turns overlap or a fence does not rise."""
    ordered = sorted(turns, key=lambda turn: turn.began_us)
    for before, after in itertools.pairwise(ordered):
        if before.ended_us is None or before.ended_us > after.began_us:
            raise ActFailed(f"{before.node} and {after.node} held the lock at once")
        if before.fence >= after.fence:
            raise ActFailed(f"the fence of {after.node} is not above that of {before.node}")


def _kill_a_holder(stage: Stage, story: _Story) -> Turn:
    story.until(lambda: len(story.turns) > ROUNDS, "the clients do not take turns")
    victim = story.turns[-1]
    node = stage.cluster[victim.node]
    stage.say("demo", f"kill -9 node {node.name} (vsyncd, pid {node.pid}), whose client holds the lock")
    stage.cluster.kill(node.name)
    return victim


class _Story:
    """What the clients have told so far."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.turns: list[Turn] = []

    def until(self, condition: Any, failure: str) -> None:
        """Take in what the clients tell until ``condition()``."""
        limit = time.monotonic() + PATIENCE_S
        while not condition():
            try:
                self._take(self.events.get(timeout=max(limit - time.monotonic(), 0)))
            except queue.Empty:
                raise ActFailed(f"{failure} within {PATIENCE_S:g} s") from None

    def drain(self) -> None:
        """Take in what is left, when all clients have ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._note(self.events.get_nowait())

    def _take(self, event: dict[str, Any]) -> None:
        self._note(event)
        who = f"client {event['node']}"
        match event["event"]:
            case "holds":
                self._stage.say(who, f"holds {NAME!r}, fence {event['fence']}")
            case "lost":
                self._stage.say(who, f"LockLost: {event['reason']}")
            case "away":
                self._stage.say(who, "has no daemon, tries again")

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "holds":
            self.turns.append(Turn(event["node"], event["fence"], event["us"]))
        for turn in self.turns:
            if event["event"] in ("gives", "lost") and turn.fence == event["fence"] and turn.ended_us is None:
                turn.ended_us = event["us"]


@contextlib.contextmanager
def _lockers(stage: Stage) -> Iterator[_Story]:
    """One client process per node, for as long as the block lasts."""
    story = _Story(stage)
    processes, readers = [], []
    try:
        for node in stage.cluster.nodes:
            process = subprocess.Popen(
                [sys.executable, "-m", "dlm.demo", node.name, node.url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
                preexec_fn=die_with_parent(),
            )
            processes.append(process)
            reader = threading.Thread(target=_read, args=(process, story), daemon=True)
            reader.start()
            readers.append(reader)
        yield story
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()  # they end after their turn
        for process, reader in zip(processes, readers, strict=False):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(HOLD_S + 2)
            process.kill()
            process.wait()
            reader.join()
            assert process.stdout is not None
            process.stdout.close()
    story.drain()


def _read(process: subprocess.Popen[str], story: _Story) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        story.events.put(json.loads(line))


# -- the client program


class _Client:
    """Takes its turns until standard input ends."""

    def __init__(self, node: str, url: str) -> None:
        self._node = node
        self._url = url
        self._over = threading.Event()
        self._turn = threading.Lock()  # held during a turn: it is finished before we end
        self._locks: dlm.Client | None = None

    def run(self) -> None:
        threading.Thread(target=self._end_with_input, daemon=True).start()
        away = False
        while not self._over.is_set():
            try:
                with dlm.connect(self._url, name=f"printer-{self._node}") as self._locks:
                    away = False
                    while not self._over.is_set():
                        self._take_a_turn(self._locks)
            except dlm.NotConnected:
                if not (away or self._over.is_set()):
                    self._tell("away")
                away = True
                self._over.wait(RETRY_S)

    def _take_a_turn(self, locks: dlm.Client) -> None:
        try:
            held = locks.acquire(NAME)
        except dlm.LockLost:
            return  # lost before it could be used
        with self._turn, contextlib.suppress(dlm.LockLost), held:
            self._tell("holds", fence=held.fence)
            if held.lost.wait(HOLD_S):
                self._tell("lost", fence=held.fence, reason=held.lost.reason)
            else:
                self._tell("gives", fence=held.fence)

    def _end_with_input(self) -> None:
        sys.stdin.read()
        self._over.set()
        with self._turn:
            if self._locks is not None:
                self._locks.close()  # ends a wait

    def _tell(self, event: str, **more: Any) -> None:
        print(json.dumps({"event": event, "node": self._node, "us": boot_us(), **more}), flush=True)


if __name__ == "__main__":
    _Client(*sys.argv[1:3]).run()
