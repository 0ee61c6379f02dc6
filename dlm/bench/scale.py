"""``python -m dlm.bench.scale``: what many names cost those who use other ones, when a node dies, when one joins.

Three ``vsyncd`` on the loopback with their default configuration. Half of the names are private to their node, on
the others somebody at another node has an NL lock. Every time is on the clock that all processes share.

- *late*: a node is killed (-9) that holds ``--locks`` locks; for one of them somebody waits at each survivor. How
  long after the survivor's horizon, which it tells itself, is the lock granted? Before it the dead node may have
  leases (K10). The floor: a node that held those two locks only.
- *pause*: the longest lock and unlock of the survivors' lockers on names private to their nodes, in the two and a
  half seconds after that signal. The floor is that of the node with few locks.
- *p99*: the two nodes that are there hold ``--names`` locks, and the third one starts. What 99 of 100 operations of
  their lockers take until it has the whole table, beside the same before (the floor); and afterwards, with three
  members and nothing else to do.
- *join*: from the start of the third node's program until its table is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import dlm
from dlm.bench.lockers import KINDS, Locker, Pauses, shared_name
from dlm.modes import EX, NL
from vsync import ipc
from vsync.bench.rows import machine
from vsync.cli.table import show
from vsync.clock import boot_us
from vsync.errors import VsyncError
from vsync.testcluster import LocalCluster
from vsync.types import Timing

__all__ = ["FIGURES", "Figure", "Scale", "main"]

BATCH = 100  #: names that are locked together: loading takes long enough
UNDER_WAY = 8  #: such requests at once
WATCHED_S = 2.5
CALM_S = 10.0
WAIT_S = 120.0
POLL_S = 0.01
SELDOM_S = 0.1  #: where asking often would be noticed
PIN = "bench/pin"  #: a name known to all: what is locked together with it becomes shared


class Figure(NamedTuple):
    """One row. ``target``: what is aimed at, in its unit or, with ``times``, as a multiple of the floor."""

    text: str
    target: float
    times: bool = False


FIGURES = {
    "late": Figure("kill -9 of a node with {locks} locks: waiters granted, ms after the horizon", 300),
    "pause": Figure("the same: longest pause of survivors on private names, ms", 200),
    "p99 private": Figure("a node joins {names} names: p99 of the others, private, ms", 3, times=True),
    "p99 shared": Figure("the same, shared names, ms", 3, times=True),
    "after private": Figure("afterwards: p99, private names, ms", 3, times=True),
    "after shared": Figure("the same, shared names, ms", 3, times=True),
    "join": Figure("join: until the node has the whole table, s", 60),
}


class Scale:
    """The measurements, and what they gave: ``found`` and ``floors`` in the unit of each figure."""

    def __init__(
        self, locks: int, names: int, tell: Callable[[str], None] = lambda text: None, transport: str | None = None
    ) -> None:
        self.locks, self.names = locks, names
        self._settings = {"transport": transport} if transport else {}
        self.found: dict[str, list[float]] = defaultdict(list)
        self.floors: dict[str, list[float]] = defaultdict(list)
        self._tell = tell

    # -- a node with many locks dies

    def purge(self, rounds: int) -> None:
        """Raises ``VsyncError``."""
        with LocalCluster(settings=self._settings) as cluster:
            for number in range(rounds):
                victim = cluster.names[number % len(cluster.names)]
                for locks, late, pause in (
                    (0, self.floors["late"], self.floors["pause"]),
                    (self.locks, self.found["late"], self.found["pause"]),
                ):
                    self._tell(f"round {number + 1} of {rounds}: node {victim} is killed with {locks} locks")
                    times = self._kill(cluster, victim, locks)
                    late += times[0]
                    pause += times[1]

    def _kill(self, cluster: LocalCluster, victim: str, locks: int) -> tuple[list[float], list[float]]:
        """How late the waiters are granted, and the longest pauses, in ms."""
        others = [name for name in cluster.names if name != victim]
        with contextlib.ExitStack() as stack:
            holder = stack.enter_context(Holder(cluster[victim].url))
            keeper = stack.enter_context(Holder(cluster[others[0]].url))
            self._hold(holder, keeper, f"purge/{boot_us()}/", locks)
            lockers = [stack.enter_context(Locker(cluster[name])) for name in others]
            heirs = [stack.enter_context(Heir(cluster, victim, name)) for name in others]
            time.sleep(WATCHED_S)
            began = boot_us()
            cluster.kill(victim)
            for heir in heirs:
                heir.see_horizon()
            late = [heir.late_us() / 1000 for heir in heirs]
            time.sleep(max(0.0, WATCHED_S - (boot_us() - began) / 1e6))
            ended = began + round(WATCHED_S * 1e6)
            pauses = [locker.pauses(began, ended).longest["private"] / 1000 for locker in lockers]
        cluster.restart(victim)
        cluster.wait_view(cluster.names)
        self._whole(cluster, victim)
        return late, pauses

    # -- a node joins

    def join(self) -> None:
        """Raises ``VsyncError``."""
        with LocalCluster(settings=self._settings) as cluster, contextlib.ExitStack() as stack:
            *there, victim = cluster.names
            cluster.leave(victim)
            holders = [stack.enter_context(Holder(cluster[name].url)) for name in there]
            for index, (holder, name) in enumerate(zip(holders, there, strict=True)):
                self._tell(f"node {name} locks {self.names // 2} names")
                self._hold(holder, holders[1 - index], f"join/{name}/", self.names // 2)
            for index, name in enumerate(there):  # so that the lockers' names stay shared
                holders[1 - index].lock(shared_name(name), NL)
            lockers = [stack.enter_context(Locker(cluster[name])) for name in there]
            self._tell(f"nothing happens for {CALM_S:g} s")
            time.sleep(CALM_S)
            began = boot_us()
            self._tell(f"node {victim} joins")
            cluster.restart(victim)
            self._whole(cluster, victim)
            ended = boot_us()
            self.found["join"].append((ended - began) / 1e6)
            self._tell(f"nothing happens for {CALM_S:g} s")
            time.sleep(CALM_S)
            calm = round(CALM_S * 1e6)
            for locker in lockers:
                before = locker.pauses(began - calm, began)
                self._compare("p99", before, locker.pauses(began, ended))
                self._compare("after", before, locker.pauses(ended, ended + calm))

    def _compare(self, figure: str, before: Pauses, during: Pauses) -> None:
        for kind in KINDS:
            if not before.count[kind] or not during.count[kind]:
                raise VsyncError("a locker stood still")
            self.floors[f"{figure} {kind}"].append(before.p99[kind] / 1000)
            self.found[f"{figure} {kind}"].append(during.p99[kind] / 1000)

    # -- both

    def _hold(self, holder: Holder, keeper: Holder, prefix: str, count: int) -> None:
        """Lock so many names; on the second half of them ``keeper`` has an NL lock."""
        began, half = boot_us(), count // 2
        holder.lock_many([f"{prefix}private/{i}" for i in range(half)], EX)
        shared = [f"{prefix}shared/{i}" for i in range(count - half)]
        for each in (holder, keeper):
            each.lock(PIN, NL)
        for each, mode in ((holder, EX), (keeper, NL)):
            each.lock_many(shared, mode, PIN)
        if count:
            self._tell(f"{count} names are locked after {(boot_us() - began) / 1e6:.1f} s")

    def _whole(self, cluster: LocalCluster, name: str) -> None:
        """Wait until the node has the whole table."""

        with contextlib.closing(self._connected(cluster, name)) as channel:
            limit = time.monotonic() + WAIT_S
            while channel.call("node", "status", {}, WAIT_S)["services"]["dlm"]["state"] != "running":
                if time.monotonic() > limit:
                    raise VsyncError(f"node {name} has no whole table after {WAIT_S:g} s")
                time.sleep(SELDOM_S)

    def _connected(self, cluster: LocalCluster, name: str) -> ipc.SocketChannel:
        cluster.wait(lambda: cluster.status(name) is not None, f"node {name} does not answer", WAIT_S)
        return ipc.connect(cluster[name].url, "bench")

    def to_json(self) -> dict[str, Any]:
        """Medians, extremes and all single values."""
        rows = {}
        for key, figure in FIGURES.items():
            if not (found := self.found.get(key)):
                continue
            text = figure.text.format(locks=self.locks, names=self.names)
            row: dict[str, Any] = {"text": text, "target": figure.target, "n": len(found), "found": found}
            row |= {"median": statistics.median(found), "max": max(found)}
            if floors := self.floors.get(key):
                row |= {"floors": floors, "floor_median": statistics.median(floors), "floor_max": max(floors)}
            if figure.times and floors:
                row["times"] = statistics.median(found) / statistics.median(floors)
            rows[key] = row
        return rows


class Holder:
    """A session that holds many locks. It has no object for each of them, as ``dlm.Client`` would."""

    def __init__(self, url: str) -> None:
        self._channel = ipc.connect(url, "bench")
        self._h = 1

    def lock_many(self, names: Sequence[str], mode: int, pin: str = "") -> None:
        """All of these. With ``pin``, a shared name before all others, unknown ones become shared at once."""
        under_way: deque[tuple[int, Future[Any]]] = deque()
        for start in range(0, len(names), BATCH):
            rows = [(name, mode) for name in names[start : start + BATCH]]
            under_way.append(self._ask([(pin, NL), *rows] if pin else rows))
            if len(under_way) == UNDER_WAY:
                self._answered(*under_way.popleft(), pin)
        for each in under_way:
            self._answered(*each, pin)

    def _answered(self, h: int, answer: Future[Any], pin: str) -> None:
        answer.result(WAIT_S)
        if pin:  # there is a limit to how many locks one name has
            self._channel.call("dlm", "unlock", {"h": h}, WAIT_S)

    def lock(self, name: str, mode: int) -> None:
        """One."""
        self._ask([(name, mode)])[1].result(WAIT_S)

    def _ask(self, rows: Sequence[tuple[str, int]]) -> tuple[int, Future[Any]]:
        h = self._h
        self._h += len(rows)
        return h, self._channel.start("dlm", "lock_all", {"h": h, "locks": rows})

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()


class Heir:
    """Somebody at a survivor who waits for a lock of the victim's."""

    def __init__(self, cluster: LocalCluster, victim: str, node: str) -> None:
        self._holder = dlm.connect(cluster[victim].url, name="bench")
        self._session = dlm.connect(cluster[node].url, name="bench")
        self._channel = ipc.connect(cluster[node].url, "bench")
        self._name, self._granted, self._horizon = f"heir/{boot_us()}", 0, 0
        self._held = self._holder.acquire(self._name, timeout=WAIT_S)
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()
        limit = time.monotonic() + WAIT_S
        while not self._holder.contenders(self._name):
            if time.monotonic() > limit:
                raise VsyncError(f"nobody waits for {self._name}")
            time.sleep(POLL_S)

    def _wait(self) -> None:
        held = self._session.acquire(self._name, timeout=WAIT_S)
        self._granted = boot_us()
        held.release(wait=True)

    def see_horizon(self) -> None:
        """Ask its node for the horizon, just after the victim's death."""
        while not self._horizon and not self._granted and self._thread.is_alive():
            asked = boot_us()
            left = self._channel.call("node", "status", {})["services"]["dlm"]["grants_wait_ms"]
            if left:
                self._horizon = asked + left * 1000
            else:
                time.sleep(POLL_S)

    def late_us(self) -> int:
        """How long after the horizon of its node it is granted."""
        self._thread.join()
        if not self._granted or not self._horizon:
            raise VsyncError(f"{self._name} was granted at {self._granted}, the horizon was {self._horizon}")
        return self._granted - self._horizon

    def __enter__(self) -> Heir:
        return self

    def __exit__(self, *error: object) -> None:
        for each in (self._session, self._holder, self._channel):
            each.close()


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m dlm.bench.scale", description="What many names cost when a node dies and when one joins."
    )
    parser.add_argument("--names", type=int, default=500_000, help="in the table that a node joins (500000)")
    parser.add_argument("--locks", type=int, default=100_000, help="of the node that is killed (100000)")
    parser.add_argument("--rounds", type=int, default=3, help="of kills; each hurts another node (3)")
    parser.add_argument("--only", choices=("purge", "join"), help="one of the two parts")
    parser.add_argument("--json", action="store_true", help="with all single values")
    args = parser.parse_args(argv)
    bench = Scale(args.locks, args.names, lambda text: print(text, file=sys.stderr, flush=True))
    try:
        if args.only != "join":
            bench.purge(args.rounds)
        if args.only != "purge":
            bench.join()
    except (VsyncError, dlm.DLMError, TimeoutError) as error:
        print(f"scale: {error}", file=sys.stderr)
        return 1
    where = machine()
    if args.json:
        print(json.dumps({"v": 1, "bench": "scale", **where, "figures": bench.to_json()}, indent=2))
        return 0
    show(("", "MEDIAN", "MAX", "N", "FLOOR", "TIMES", "TARGET"), [_row(row) for row in bench.to_json().values()])
    lease = Timing().lease / 1000
    print(f"3 nodes, default timers, {where['cpus']} CPUs, Python {where['python']}; lease {lease:g} ms")
    return 0


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    times = f"{row['times']:.1f}" if "times" in row else "-"
    floor = f"{row['floor_median']:.1f}" if "floors" in row else "-"
    target = f"{row['target']:g} x floor" if "times" in row else f"{row['target']:g}"
    return row["text"], f"{row['median']:.1f}", f"{row['max']:.1f}", str(row["n"]), floor, times, target


if __name__ == "__main__":
    sys.exit(main())
