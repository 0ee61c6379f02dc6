"""``python -m dlm.bench.failover``: how long locks are out of reach when a node fails, leaves or joins.

Three ``vsyncd`` on the loopback with their default configuration. Each round hurts another node. Every time is from
before the signal is sent until a program has the answer, on the clock that all processes of the host share:

- *kill -9 of the holder's daemon*: until the one who waits at a survivor is granted. The floor is the lease: the
  dead node may have been the last to know of a grant, whose holder counts on it for so long (K10).
- *a name that nobody held*: a lock that survivors ask for just after that. Beside it: with ``answer = "stable"``.
- *clean stop* (SIGTERM): until the one who waits is granted; nobody waits for a lease.
- *pauses*: the longest lock and unlock of processes that do nothing else, on names private to survivors while a
  node is killed, and on private and shared names of everybody while one joins. The floor is the longest of a calm
  time of the same length in the same run; for a join, of one in which a program as large starts and joins nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import dlm
from dlm.bench.lockers import KINDS, Locker, shared_name
from vsync.bench.rows import machine
from vsync.cli.table import show
from vsync.clock import boot_us
from vsync.errors import VsyncError
from vsync.testcluster import LocalCluster
from vsync.types import Timing

__all__ = ["FIGURES", "Failover", "Figure", "main"]

LEASE_MS = Timing().lease / 1000
WATCHED_S = 2.5  #: pauses are looked for so long after a failure
GRANT_S = 20.0
STABLE = '\n[dlm.lockspace.default]\nanswer = "stable"\n'


class Figure(NamedTuple):
    """One row. ``target``: ms that are aimed at; ``floor``: those without which it cannot be, if not measured."""

    text: str
    target: float
    floor: float | None = None


FIGURES = {
    "kill": Figure("kill -9 of the holder's daemon, until the waiter is granted", LEASE_MS + 100, LEASE_MS),
    "kill free": Figure("the same, a name that nobody held", LEASE_MS + 100, LEASE_MS),
    "stable held": Figure('answer = "stable": kill -9, until the waiter is granted', LEASE_MS + 100, LEASE_MS),
    "stable free": Figure('answer = "stable": a name that nobody held', 200),
    "stable handed": Figure('answer = "stable": a name that one survivor gives to another', 200),
    "leave": Figure("clean stop of the holder's daemon, until the waiter is granted", 60),
    "kill private": Figure("kill -9: longest pause on private names of survivors", 200),
    "join private": Figure("join: longest pause of anybody, private names", 50),
    "join shared": Figure("join: longest pause of anybody, shared names", 50),
}


class Failover:
    """The measurements, and what they gave: ``times`` and ``floors`` in ms, by figure."""

    def __init__(self, tell: Callable[[str], None] = lambda text: None, transport: str = "zmq") -> None:
        self._settings = {"transport": transport}
        self.times: dict[str, list[float]] = defaultdict(list)
        self.floors: dict[str, list[float]] = defaultdict(list)
        self._tell = tell

    # -- with the default configuration

    def default(self, rounds: int) -> None:
        """All but ``answer = "stable"``. Raises ``VsyncError``."""
        with LocalCluster(settings=self._settings) as cluster:
            for number in range(rounds):
                victim = cluster.names[number % len(cluster.names)]
                self._tell(f"round {number + 1} of {rounds}, node {victim}: kill and join")
                self._kill_and_join(cluster, victim)
                self._tell(f"round {number + 1} of {rounds}, node {victim}: leave")
                self._leave(cluster, victim)

    def _kill_and_join(self, cluster: LocalCluster, victim: str) -> None:
        others = [name for name in cluster.names if name != victim]
        with contextlib.ExitStack() as stack:
            sessions = _sessions(stack, cluster)
            kept = [  # so that the lockers' names stay shared, whoever dies
                sessions[keeper].acquire(shared_name(name), dlm.Mode.NL)
                for name in others
                for keeper in cluster.names
                if keeper != name
            ]
            lockers = [stack.enter_context(Locker(cluster[name])) for name in others]
            waits = _Waits(sessions, kept)
            for name in others:
                waits.behind(sessions[victim], name, f"held/{name}")
            time.sleep(WATCHED_S)
            began = boot_us()
            cluster.kill(victim)
            for name in others:
                waits.start(name, f"free/{began}/{name}")
            time.sleep(WATCHED_S)
            self._pauses("kill private", lockers, "private", began, WATCHED_S)
            self._granted("kill", waits.done("held/"), began)
            self._granted("kill free", waits.done("free/"), began)
            self._join(cluster, victim, lockers)

    def _join(self, cluster: LocalCluster, victim: str, lockers: Sequence[Locker]) -> None:
        """A program of the same size starts, as a floor; then the node."""
        calm = boot_us()
        with subprocess.Popen(
            [sys.executable, "-m", "vsync.daemon", "--config", str(cluster[victim].config), "--check-config"],
            stdout=subprocess.DEVNULL,
        ):
            time.sleep(WATCHED_S)
        began = boot_us()
        cluster.restart(victim)
        time.sleep(WATCHED_S)  # whoever asked the nodes again and again how far they are would be in their way
        cluster.wait_view(cluster.names)
        ended = boot_us()
        for kind in KINDS:
            self._longest(f"join {kind}", lockers, kind, calm, calm + round(WATCHED_S * 1e6), began, ended)

    def _leave(self, cluster: LocalCluster, victim: str) -> None:
        others = [name for name in cluster.names if name != victim]
        with contextlib.ExitStack() as stack:
            sessions = _sessions(stack, cluster)
            waits = _Waits(sessions)
            for name in others:
                waits.behind(sessions[victim], name, f"held/{name}")
            began = boot_us()
            cluster.leave(victim)
            self._granted("leave", waits.done("held/"), began)
        cluster.restart(victim)
        cluster.wait_view(cluster.names)

    # -- with stable answers

    def stable(self, rounds: int) -> None:
        """``answer = "stable"``. Raises ``VsyncError``."""
        cluster = LocalCluster(settings=self._settings)
        for node in cluster.nodes:
            node.config.write_text(node.config.read_text() + STABLE)
        with cluster:
            for number in range(rounds):
                victim = cluster.names[number % len(cluster.names)]
                self._tell(f'answer = "stable", round {number + 1} of {rounds}, node {victim}')
                self._stable_round(cluster, victim)

    def _stable_round(self, cluster: LocalCluster, victim: str) -> None:
        others = [name for name in cluster.names if name != victim]
        with contextlib.ExitStack() as stack:
            sessions = _sessions(stack, cluster)
            waits = _Waits(sessions)
            waits.behind(sessions[victim], others[0], "held/1")
            handed = waits.behind(sessions[others[0]], others[1], "handed/1")
            began = boot_us()
            cluster.kill(victim)
            handed.release()
            for name in others:
                waits.start(name, f"free/{began}/{name}")
            for figure in ("held", "handed", "free"):
                self._granted(f"stable {figure}", waits.done(f"{figure}/"), began)
        cluster.restart(victim)
        cluster.wait_view(cluster.names)

    # -- what came out

    def _granted(self, figure: str, times: Iterable[int], began: int) -> None:
        self.times[figure] += [(t - began) / 1000 for t in times]

    def _pauses(self, figure: str, lockers: Sequence[Locker], kind: str, began: int, seconds: float) -> None:
        span = round(seconds * 1e6)
        self._longest(figure, lockers, kind, began - span, began - 1, began, began + span)

    def _longest(
        self, figure: str, lockers: Sequence[Locker], kind: str, calm: int, calm_end: int, began: int, ended: int
    ) -> None:
        for locker in lockers:
            floor, found = locker.pauses(calm, calm_end), locker.pauses(began, ended)
            if not floor.count[kind] or not found.count[kind]:
                raise VsyncError(f"the locker at node {locker.node.name} stood still")
            self.floors[figure].append(floor.longest[kind] / 1000)
            self.times[figure].append(found.longest[kind] / 1000)

    def to_json(self) -> dict[str, Any]:
        """All single times."""
        rows = {}
        for key in FIGURES:
            if times := self.times.get(key):
                floor = FIGURES[key].floor
                floors = self.floors.get(key) or ([] if floor is None else [floor])
                row = {"text": FIGURES[key].text, "target_ms": FIGURES[key].target, "n": len(times)}
                row |= {"median_ms": statistics.median(times), "max_ms": max(times), "times_ms": times}
                if floors:
                    row |= {"floor_median_ms": statistics.median(floors), "floor_max_ms": max(floors)}
                rows[key] = row
        return rows


class _Waits:
    """Threads that wait for locks, and when they got them. ``held``: what else is held for so long."""

    def __init__(self, sessions: dict[str, dlm.Client], held: Iterable[dlm.Held] = ()) -> None:
        self._sessions = sessions
        self._held = list(held)
        self._threads: dict[str, list[threading.Thread]] = defaultdict(list)
        self._times: dict[str, list[int]] = defaultdict(list)

    def behind(self, holder: dlm.Client, node: str, name: str) -> dlm.Held:
        """``holder`` takes the lock, and somebody at ``node`` begins to wait for it."""
        held = holder.acquire(name, timeout=GRANT_S)
        self._held.append(held)
        self.start(node, name)
        limit = time.monotonic() + GRANT_S
        while not holder.contenders(name):
            if time.monotonic() > limit:
                raise VsyncError(f"nobody waits for {name}")
            time.sleep(0.01)
        return held

    def start(self, node: str, name: str) -> None:
        """Somebody at ``node`` asks for ``name``."""
        thread = threading.Thread(target=self._wait, args=(self._sessions[node], name), daemon=True)
        thread.start()
        self._threads[name].append(thread)

    def _wait(self, session: dlm.Client, name: str) -> None:
        held = session.acquire(name, timeout=GRANT_S)
        self._times[name].append(boot_us())
        held.release(wait=True)

    def done(self, prefix: str) -> list[int]:
        """When those who asked for names that begin so were granted: the first for each name."""
        found = []
        for name in sorted(name for name in self._threads if name.startswith(prefix)):
            for thread in self._threads[name]:
                thread.join()
            if not self._times[name]:
                raise VsyncError(f"{name} was not granted within {GRANT_S:g} s")
            found.append(min(self._times[name]))
        return found


def _sessions(stack: contextlib.ExitStack, cluster: LocalCluster) -> dict[str, dlm.Client]:
    """One with each node, when all of them grant locks at once again."""
    sessions = {node.name: stack.enter_context(dlm.connect(node.url, name="bench")) for node in cluster.nodes}
    for session in sessions.values():
        session.acquire("bench/ready", timeout=GRANT_S).release(wait=True)
    return sessions


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m dlm.bench.failover", description="How long locks are out of reach when a node fails."
    )
    parser.add_argument("--rounds", type=int, default=6, help="each hurts another node (default 6)")
    parser.add_argument("--transport", choices=("zmq", "udp"), default="zmq", help="default: zmq")
    parser.add_argument("--no-stable", action="store_true", help='leave answer = "stable" out')
    parser.add_argument("--json", action="store_true", help="with all single times")
    args = parser.parse_args(argv)
    bench = Failover(lambda text: print(text, file=sys.stderr, flush=True), args.transport)
    try:
        bench.default(args.rounds)
        if not args.no_stable:
            bench.stable(args.rounds)
    except (VsyncError, dlm.DLMError) as error:
        print(f"failover: {error}", file=sys.stderr)
        return 1
    where = machine()
    if args.json:
        head = {"v": 1, "bench": "failover", "transport": args.transport, **where}
        print(json.dumps({**head, "figures": bench.to_json()}, indent=2))
        return 0
    heads = ("MS", "MEDIAN", "MAX", "N", "FLOOR", "FLOOR MAX", "TARGET")
    show(heads, [_row(row) for row in bench.to_json().values()])
    shown = f"{args.transport}, default timers, {where['cpus']} CPUs, Python {where['python']}"
    print(f"3 nodes, {shown}; lease {LEASE_MS:g} ms")
    return 0


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    floor = (f"{row[f'floor_{x}_ms']:.1f}" if f"floor_{x}_ms" in row else "-" for x in ("median", "max"))
    times = f"{row['median_ms']:.1f}", f"{row['max_ms']:.1f}"
    return (row["text"], *times, str(row["n"]), *floor, f"{row['target_ms']:g}")


if __name__ == "__main__":
    sys.exit(main())
