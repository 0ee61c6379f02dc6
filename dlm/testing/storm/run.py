"""One storm: cluster, clients and faults together; then healing, proof that everything is free, and the verdict."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dlm
from dlm.testing.calls import Note, Notebook, Problem, Result, Verb, What, read
from dlm.testing.linear import Verdict, judge
from dlm.testing.register import judge_registers
from dlm.testing.soak.run import FAST_MS
from dlm.testing.storm.faults import FAULTS, Faults
from dlm.testing.storm.names import all_names
from dlm.testing.storm.notes import Notes
from dlm.testing.storm.registers import Registers, from_data
from vsync.bench.netns import NetnsCluster
from vsync.clock import boot_us
from vsync.errors import VsyncError
from vsync.testcluster import LocalCluster, die_with_parent
from vsync.types import Timing

__all__ = ["Plan", "Storm", "StormError"]

POLL_S = 0.02
PROGRESS_S = 20.0
PROOF_S = 20.0
END_S = 30.0
WHOLE_S = 40.0
WRITTEN_US = 500_000  #: notes are in their files so soon
SMALL_DISK = "256k"
STABLE = '\n[dlm.lockspace.default]\nanswer = "stable"\n'
NEMESIS = "nemesis"
PROOF = "proof"


_networks = itertools.count()


class StormError(VsyncError):
    """The storm could not be carried out, or somebody does not get on; the text says what."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``fast``: short timers instead of the default ones. ``namespaces``: a network that can be cut, needs root;
    else the nodes are on the loopback. ``pace``: mean pause of a client between two rounds, in seconds. ``stable``:
    with ``answer = "stable"``.
    """

    seed: int = 1
    nodes: int = 3
    clients: int = 5
    hot: int = 3
    kept: int = 3
    fast: bool = False
    namespaces: bool = True
    pace: float = 0.01
    stable: bool = False
    transport: str = "zmq"

    @property
    def lease_s(self) -> float:
        """Of the configuration."""
        return FAST_MS["lease_ms"] / 1000 if self.fast else Timing().lease / 1e6

    @property
    def names(self) -> list[str]:
        """All that are locked."""
        return all_names(self.hot, self.kept, self.clients)


@dataclass(slots=True)
class _Client:
    """One of the clients, through its lives."""

    index: int
    life: int
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return f"c{self.index + 1}.{self.life}"


class Storm:
    """One storm in ``folder``, which must be empty and keeps everything: logs, notes, registers. ``with`` starts
    cluster and clients and ends them. To be used from the main thread, as the processes die with it.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.lease_s = plan.lease_s
        self.counts: Counter[str] = Counter()  #: faults
        self.notes = Notes(folder)
        self.cluster = self._cluster()
        self.small_disk = self.cluster.names[-1]  #: the node whose disk can be filled
        self._chance = random.Random(f"{plan.seed}/nemesis")
        self._faults = Faults(self, self._chance)
        self._clients: list[_Client] = []
        self._book = Notebook(NEMESIS, folder / f"{NEMESIS}.notes")
        self._mounted = False
        self._finished = False

    # -- from start to end

    def start(self) -> None:
        """Cluster and clients; returns when all clients are at work. Raises ``StormError``, ``ClusterError``."""
        if self.plan.namespaces:
            self._mount_small_disk()
            assert isinstance(self.cluster, NetnsCluster)
            self.cluster.network.make()
        for index in range(self.plan.clients):
            self._clients.append(_Client(index, 1, self._spawn(index, 1)))
        self.cluster.start()
        self.wait_progress(None, "at the start")
        self.note(What.CALM)

    def strike(self, fault: str) -> None:
        """Do it, mend it, and wait until all get on again. Raises ``StormError``, ``ClusterError``."""
        self.counts[fault] += 1
        self.note(What.TROUBLE, reason=fault)
        FAULTS[fault].act(self._faults)
        self.heal()

    def heal(self) -> None:
        """Mend everything and wait until all nodes are in one view and every client gets locks again."""
        self._faults.mend()
        self.cluster.wait_view(self.cluster.names, timeout_s=WHOLE_S)
        self.wait_progress(None, "after healing")
        self.note(What.CALM)

    def blow(self, seconds: float) -> None:
        """Faults at random for so long."""
        kinds = [fault for fault in FAULTS.values() if self.plan.namespaces or not fault.network]
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.strike(self._chance.choices(kinds, [fault.weight for fault in kinds])[0].name)
            self.pause(self._chance.uniform(0.1, 1.0) * self.lease_s)

    def finish(self) -> Verdict:
        """Stop the clients, take every lock, and judge everything."""
        self._end_clients()
        problems = self._proof()
        self._finished = True
        verdict = self.verdict()
        verdict.problems += problems
        return verdict

    def verdict(self) -> Verdict:
        """Judge what there is so far; while clients are at work, as if they had been killed a moment ago."""
        now = boot_us() - WRITTEN_US  # files are read one after the other: all must have been written until then
        self.notes.poll()
        notes = self.notes.all
        final: Mapping[str, int] | None = None
        if self._finished:
            registers = Registers(self.folder)
            final = {name: from_data(registers[name].data) for name in self.plan.names}
        else:
            notes = [note for note in notes if note.t <= now]
            dead = {note.client for note in notes if note.what is What.DIED}
            notes += [Note(now, name, What.DIED) for name in sorted({note.client for note in notes} - dead)]
        history = read(notes)
        verdict = judge(history, bound_us=int((2 * self.lease_s + 1.5) * 1e6))
        verdict.problems += judge_registers(history, verdict.stretches, final)
        return verdict

    def close(self) -> None:
        """End all processes. Idempotent."""
        for client in self._clients:
            client.process.kill()
            client.process.wait()
        self.cluster.close()
        if isinstance(self.cluster, NetnsCluster):
            self.cluster.network.remove()
        if self._mounted:
            subprocess.run(["umount", "-l", self.folder / self.small_disk], check=False)
            self._mounted = False

    def __enter__(self) -> Storm:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- time passes

    def pause(self, seconds: float) -> None:
        """Let time pass, with an eye on every process. Raises ``StormError``."""
        limit = time.monotonic() + seconds
        while True:
            self._look_after()
            rest = limit - time.monotonic()
            if rest <= 0:
                return
            time.sleep(min(POLL_S, rest))

    def until(self, condition: Callable[[], bool], failure: str, seconds: float) -> None:
        """Poll with an eye on every process. Raises ``StormError`` with ``failure`` after ``seconds``."""
        limit = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > limit:
                raise StormError(f"{failure}, for {seconds:g} s")
            self.pause(POLL_S)

    def wait_progress(self, nodes: Iterable[str] | None, when: str) -> None:
        """Wait until every client (one at each of ``nodes``, if that is given) was granted what it asked for from
        now on. Raises ``StormError``.
        """
        since = boot_us()
        try:
            self.until(lambda: not self._behind(since, nodes), f"not everybody gets a lock {when}", PROGRESS_S)
        except StormError as error:
            states = {name: self.cluster.status(name) for name in self.cluster.names}
            raise StormError(f"{error}: not {self._behind(since, nodes)}; the nodes say {states}") from None

    def _behind(self, since: int, nodes: Iterable[str] | None) -> list[str]:
        self.notes.poll()
        got = {name for name, called in self.notes.granted.items() if called >= since}
        if nodes is None:
            return [name for name in self.client_names if name not in got]
        served = {self.notes.node[name] for name in got}
        present = {self.notes.node.get(name) for name in self.client_names}
        return [node for node in nodes if node in present and node not in served]

    def _look_after(self) -> None:
        for node in self.cluster.nodes:
            if not node.running and node.name not in self._faults.down:
                raise StormError(f"node {node.name} has ended on its own: {_tail(node.log)}")
        for client in self._clients:
            code = client.process.poll()
            if code is not None:
                log = self.folder / f"{client.name}.log"
                raise StormError(f"client {client.name} has ended with {code}: {_tail(log)}")

    def note(self, what: What, **fields: Any) -> None:
        """Something is done to the cluster."""
        self._book.write(what, **fields)

    # -- clients

    @property
    def client_names(self) -> list[str]:
        """Of the present lives of all clients."""
        return [client.name for client in self._clients]

    def signal_client(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a client, if this life of it goes on."""
        for client in self._clients:
            if client.name == name:
                client.process.send_signal(number)

    def kill_client(self, name: str) -> None:
        """kill -9; its next life begins."""
        for client in self._clients:
            if client.name == name:
                client.process.kill()
                client.process.wait()
                with contextlib.closing(Notebook(name, self.folder / f"{name}.notes")) as book:
                    self._end_line(name)
                    book.write(What.DIED)
                client.life += 1
                client.process = self._spawn(client.index, client.life)

    def _end_line(self, name: str) -> None:
        """A client that was killed may have left half a line, which is to be ignored."""
        path = self.folder / f"{name}.notes"
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)

    def _spawn(self, index: int, life: int) -> subprocess.Popen[bytes]:
        nodes = self.cluster.nodes
        first = index % len(nodes)
        name = f"c{index + 1}.{life}"
        plan = self.plan
        command = [
            sys.executable, "-m", "dlm.testing.storm.client", "--name", name, "--index", str(index),
            "--number", str(index * 1000 + life), "--folder", str(self.folder), "--hot", str(plan.hot),
            "--kept", str(plan.kept), "--seed", f"{plan.seed}/{name}", "--pace", str(plan.pace),
            *(f"{node.name}={node.url}" for node in (*nodes[first:], *nodes[:first])),
        ]  # fmt: skip
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=die_with_parent(), process_group=0,
            )  # fmt: skip

    def _end_clients(self) -> None:
        self.pause(0)
        for client in self._clients:
            client.process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + END_S
        for client in self._clients:
            try:
                code = client.process.wait(max(limit - time.monotonic(), POLL_S))
            except subprocess.TimeoutExpired:
                raise StormError(f"client {client.name} does not end within {END_S:g} s") from None
            if code not in (0, -signal.SIGTERM):  # the latter if it had not come so far as to listen for it
                log = self.folder / f"{client.name}.log"
                raise StormError(f"client {client.name} has ended with {code}: {_tail(log)}")

    def _proof(self) -> list[Problem]:
        """Every lock must be free now, for two nodes that take it in turn; noted like what clients do."""
        problems = []
        names, nodes = self.plan.names, self.cluster.nodes
        with contextlib.closing(Notebook(PROOF, self.folder / f"{PROOF}.notes")) as book:
            ops = itertools.count(1, 2)
            for index, node in enumerate(nodes):
                with dlm.connect(node.url, name=PROOF) as locks:
                    for name in (*names[index :: len(nodes)], *names[(index + 1) % len(nodes) :: len(nodes)]):
                        problems += _prove(book, next(ops), node.name, locks, name)
        return problems

    # -- the place

    def _cluster(self) -> LocalCluster:
        plan = self.plan
        timing = FAST_MS if plan.fast else None
        if plan.namespaces:
            prefix = f"v{os.getpid()}{chr(97 + next(_networks) % 26)}"  # several storms may go on at once
            cluster: LocalCluster = NetnsCluster(
                timing, nodes=plan.nodes, folder=self.folder, prefix=prefix, net="10.97", transport=plan.transport
            )
        else:
            settings = {"transport": plan.transport}
            cluster = LocalCluster(plan.nodes, folder=self.folder, name="storm", timing=timing, settings=settings)
        for node in cluster.nodes if plan.stable else ():
            node.config.write_text(node.config.read_text() + STABLE)
        return cluster

    def _mount_small_disk(self) -> None:
        path = self.folder / self.small_disk
        path.mkdir(mode=0o700)
        options = f"size={SMALL_DISK},mode=700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise StormError(f"no small disk: {done.stderr.strip()}")
        self._mounted = True

    def fill_disk(self) -> None:
        """Nothing more can be written to the disk of node ``small_disk``."""
        with open(self._filling, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free_disk(self) -> None:
        """The reverse."""
        self._filling.unlink()

    @property
    def _filling(self) -> Path:
        return self.folder / self.small_disk / "filling"


def _prove(book: Notebook, op: int, node: str, locks: dlm.Client, name: str) -> list[Problem]:
    book.write(What.CALL, op=op, verb=Verb.ACQUIRE, handle=op, name=name, mode="EX", node=node, patient=True)
    try:
        held = locks.acquire(name, timeout=PROOF_S)
    except (dlm.LockError, dlm.NotConnected) as error:
        book.write(What.RETURN, op=op, result=Result.NO, reason=str(error))
        return [Problem("proof", f"{name} is not free at node {node}: {error}")]
    deadline = locks.session.lease()[1]
    book.write(What.RETURN, op=op, result=Result.OK, mode="EX", fence=held.fence, deadline=deadline)
    book.write(What.CALL, op=op + 1, verb=Verb.RELEASE, handle=op)
    held.release()
    book.write(What.RETURN, op=op + 1, result=Result.OK)
    return []


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-12:]) or "it says nothing"
