"""One soak run: cluster, clients and nemesis together; then healing, counting and judging."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dlm
from dlm.testing.histories import Event, Verdict, What, judge, parse
from dlm.testing.soak.client import lock_name
from dlm.testing.soak.counter import FencedCounter
from dlm.testing.soak.nemesis import Nemesis
from vsync.clock import boot_us
from vsync.errors import VsyncError
from vsync.testcluster import LocalCluster, die_with_parent

__all__ = ["FAST_MS", "Plan", "Result", "Soak", "SoakError"]

POLL_S = 0.02
STALL_S = 60.0  #: nobody counts for so long: something hangs
END_S = 60.0
FREE_S = 20.0  #: a lock that nobody can hold any more must be free within this
DEFAULT_LEASE_S = 2.0
#: Timers for more view changes in less time.
FAST_MS = {
    "token_ms": 400,
    "token_retransmit_ms": 100,
    "hold_ms": 80,
    "join_ms": 30,
    "consensus_ms": 150,
    "merge_ms": 100,
    "lease_ms": 800,
}

_VIEW = re.compile(r"\bdlm\.view +ring=(\S+)")


class SoakError(VsyncError):
    """The run itself could not be carried out, or something hangs; the text says what."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``rounds``: increments to be acknowledged in all; ``seconds``: the time after which clients are stopped
    whatever they have done (``None``: they finish); ``faults``: at least so many, also if the rounds are done
    before. ``fast``: short timers instead of the default ones. ``rough``: faults on top of each other.
    """

    seed: int = 1
    rounds: int = 10_000
    seconds: float | None = None
    faults: int = 1
    nodes: int = 3
    clients: int = 4
    names: int = 50
    fast: bool = False
    rough: bool = False


@dataclass(slots=True)
class Result:
    """What a run came to."""

    plan: Plan
    verdict: Verdict
    faults: Mapping[str, int]
    views: int
    seconds: float
    standstill: float  #: longest time without any grant, in seconds
    orphans: list[str] = field(default_factory=list)  #: names whose lock nobody can get at the end

    @property
    def good(self) -> bool:
        """Whether everything holds."""
        return self.verdict.good and not self.orphans

    def lines(self) -> Iterator[str]:
        """For people."""
        verdict = self.verdict
        rate = verdict.acknowledged / max(self.seconds, 0.001)
        yield f"rounds      {verdict.acknowledged} in {self.seconds:.1f} s: {rate:.0f} a second"
        yield f"holds       {len(verdict.holds)}, longest time without a grant {self.standstill:.1f} s"
        yield f"faults      {sum(self.faults.values())}: {_counted(self.faults)}"
        yield f"views       {self.views}"
        yield f"lost locks  {sum(verdict.lost.values())}: {_counted(verdict.lost)}"
        yield f"not granted {sum(verdict.failed.values())}: {_counted(verdict.failed)}"
        yield f"fenced off  {verdict.refused}; unknown increments {verdict.unknown}"
        if self.orphans:
            yield f"BROKEN: never free again: {', '.join(self.orphans)}"
        if not verdict.good:
            yield f"BROKEN: {len(verdict.problems)} problems"
            yield verdict.report()
        elif not self.orphans:
            yield "good: counts exact, no two holders, fences rising, one outcome each"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[key]} {key}" for key in sorted(counts, key=lambda k: (-counts[k], k))) or "none"


@dataclass(slots=True)
class _Client:
    """One of the clients, through its lives. ``name`` is that of the present life."""

    index: int
    life: int
    process: subprocess.Popen[bytes]
    quota: int

    @property
    def name(self) -> str:
        return f"c{self.index + 1}.{self.life}"


class Soak:
    """One run in ``folder``, which must be empty and keeps everything: logs, histories, counters.

    To be used from the main thread, as the processes die with it. No process is left when ``run`` returns or
    raises.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.cluster = LocalCluster(plan.nodes, folder=folder, name="soak", timing=FAST_MS if plan.fast else None)
        self._chance = random.Random(plan.seed)
        self._clients: list[_Client] = []
        self._deaths: list[str] = []  #: client lives that were killed
        self._counters = [FencedCounter(folder / lock_name(number)) for number in range(plan.names)]
        self._progress = (0, 0.0)  #: sum of the counters, and since when it is that
        self._ending = False
        self._nemesis = Nemesis(
            self.cluster,
            random.Random(f"{plan.seed}/nemesis"),
            FAST_MS["lease_ms"] / 1000 if plan.fast else DEFAULT_LEASE_S,
            self._pause,
            self._kill_client,
            plan.rough,
        )

    def run(self) -> Result:
        """Do it all. Raises ``SoakError``, ``ClusterError``; broken rules are in the result."""
        try:
            self.cluster.start()
            began = time.monotonic()
            self._start_clients()
            self._trouble(began)
            seconds = time.monotonic() - began
            self._nemesis.whole()
            self._end_clients()
            orphans = self._orphans()
        finally:
            for client in self._clients:
                client.process.kill()
                client.process.wait()
            self.cluster.close()
        events = self._events()
        final = {counter.path.name: counter.value() for counter in self._counters}
        return Result(
            plan=self.plan,
            verdict=judge(events, final),
            faults=self._nemesis.counts,
            views=self._views(),
            seconds=seconds,
            standstill=_standstill(events),
            orphans=orphans,
        )

    # -- trouble

    def _trouble(self, began: float) -> None:
        """Faults until the clients have counted enough, or time is over."""
        plan = self.plan
        limit = None if plan.seconds is None else began + plan.seconds
        self._pause(0.5)
        while True:
            enough = sum(self._nemesis.counts.values()) >= plan.faults
            over = limit is not None and time.monotonic() >= limit
            if over or (enough and not self._busy()):
                return
            self._nemesis.fault()

    def _busy(self) -> bool:
        return any(client.process.poll() is None for client in self._clients)

    def _pause(self, seconds: float) -> None:
        """Let time pass, with an eye on every process."""
        limit = time.monotonic() + seconds
        while True:
            self._look_after()
            rest = limit - time.monotonic()
            if rest <= 0:
                return
            time.sleep(min(POLL_S, rest))

    def _look_after(self) -> None:
        """Raises ``SoakError`` for a process that ended on its own, or if nobody gets on."""
        for node in self.cluster.nodes:
            if not node.running and node.name not in self._nemesis.down:
                raise SoakError(f"node {node.name} has ended on its own; its log is {node.log}")
        for client in self._clients:
            code = client.process.poll()
            if code not in (None, 0):
                raise SoakError(f"client {client.name} has ended with {code}: {self._tail(client)}")
        total, now = sum(counter.value() for counter in self._counters), time.monotonic()
        if total != self._progress[0] or not self._busy():
            self._progress = (total, now)
        elif now - self._progress[1] > STALL_S:
            states = {name: self.cluster.status(name) for name in self.cluster.names}
            raise SoakError(f"nobody has counted for {STALL_S:g} s; the nodes say {states}")

    # -- clients

    def _start_clients(self) -> None:
        share, rest = divmod(self.plan.rounds, self.plan.clients)
        for index in range(self.plan.clients):
            quota = share + (1 if index < rest else 0)
            self._clients.append(_Client(index, 1, self._spawn(index, 1, quota), quota))
        self._progress = (0, time.monotonic())

    def _spawn(self, index: int, life: int, quota: int) -> subprocess.Popen[bytes]:
        nodes = self.cluster.nodes
        first = index % len(nodes)
        name = f"c{index + 1}.{life}"
        command = [
            sys.executable, "-m", "dlm.testing.soak.client",
            "--name", name, "--index", str(index), "--folder", str(self.folder),
            "--names", str(self.plan.names), "--rounds", str(quota), "--seed", f"{self.plan.seed}/{name}",
            *(f"{node.name}={node.url}" for node in (*nodes[first:], *nodes[:first])),
        ]  # fmt: skip
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=die_with_parent(), process_group=0,
            )  # fmt: skip

    def _kill_client(self) -> None:
        """Kill -9 one that is at work; its next life does the rest of its rounds."""
        busy = [client for client in self._clients if client.process.poll() is None]
        if not busy:
            return
        client = self._chance.choice(busy)
        client.process.kill()
        client.process.wait()
        self._deaths.append(client.name)
        done = sum(event.what is What.WROTE for event in self._history(client.name))
        client.quota = max(client.quota - done, 0)
        client.life += 1
        client.process = self._spawn(client.index, client.life, client.quota)

    def _end_clients(self) -> None:
        """Let them finish, or stop them after their round if time is what counts."""
        if self.plan.seconds is not None:
            for client in self._clients:
                client.process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + END_S
        while self._busy():
            if time.monotonic() > limit and self.plan.seconds is not None:
                raise SoakError(f"clients do not end within {END_S:g} s")
            self._pause(POLL_S)
        self._look_after()

    def _tail(self, client: _Client) -> str:
        lines = (self.folder / f"{client.name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-12:]) or "it says nothing"

    # -- judging

    def _orphans(self) -> list[str]:
        """Every lock must be free for everybody at the end: one of somebody who has gone would show here."""
        found = set()
        for node in self.cluster.nodes:
            with dlm.connect(node.url, name="soak-judge") as locks:
                for counter in self._counters:
                    try:
                        locks.acquire(counter.path.name, timeout=FREE_S).release()
                    except (dlm.LockTimeout, dlm.LockLost) as error:
                        found.add(f"{counter.path.name} at node {node.name} ({error})")
        return sorted(found)

    def _history(self, name: str) -> list[Event]:
        with contextlib.suppress(FileNotFoundError):
            return list(parse((self.folder / f"{name}.history").read_bytes()))
        return []

    def _events(self) -> list[Event]:
        """All histories, with the ends of clients that were killed."""
        events: list[Event] = []
        for path in sorted(self.folder.glob("*.history")):
            events += self._history(path.stem)
        for name in self._deaths:
            lasts = {event.round: event.what for event in self._history(name)}
            died = [number for number, what in lasts.items() if what not in (What.FAILED, What.RELEASE)]
            events += [Event(boot_us(), name, What.DIED, number) for number in died]
        return events

    def _views(self) -> int:
        """Primary and other views that were installed anywhere."""
        rings: Counter[str] = Counter()
        for node in self.cluster.nodes:
            rings.update(_VIEW.findall(node.log.read_text(errors="replace")))
        return len(rings)


def _standstill(events: list[Event]) -> float:
    times = sorted(event.t for event in events if event.what is What.GRANTED)
    return max((b - a for a, b in itertools.pairwise(times)), default=0) / 1e6
