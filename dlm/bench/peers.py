"""What a user would pick instead, with its usual Python client: servers on the loopback, started and ended by us.

Redis, one server without persistence (redis-py's lock); etcd, three nodes (etcd3gw's lock); ZooKeeper, three nodes
(kazoo's lock). Debian's packages ``redis-server``, ``etcd-server``, ``zookeeper``; the clients are the extra
``peers``. What is not installed is left out, and the report says why.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dlm.bench.pairs import Pair
from vsync.errors import VsyncError
from vsync.testcluster import die_with_parent, free_ports

__all__ = ["PAIRS", "PEERS", "Server", "missing"]

TTL_S = 10
START_S = 40.0
JARS = "/usr/share/java"


# -- pairs, in the callers' processes


@contextlib.contextmanager
def redis_pair(port: str, name: str) -> Iterator[Pair]:
    """redis-py."""
    import redis

    client = redis.Redis(port=int(port))

    def pair() -> None:
        lock = client.lock(name, timeout=TTL_S)
        lock.acquire()
        lock.release()

    yield pair


@contextlib.contextmanager
def etcd_pair(port: str, name: str) -> Iterator[Pair]:
    """etcd3gw."""
    import etcd3gw

    client = etcd3gw.client(host="127.0.0.1", port=int(port), api_path="/v3/")

    def pair() -> None:
        lock = client.lock(id=name, ttl=TTL_S)
        lock.acquire()
        lock.release()

    yield pair


@contextlib.contextmanager
def zookeeper_pair(port: str, name: str) -> Iterator[Pair]:
    """kazoo."""
    from kazoo.client import KazooClient

    client = KazooClient(hosts=f"127.0.0.1:{port}")
    client.start()

    def pair() -> None:
        lock = client.Lock(f"/lock/{name}", "bench")
        lock.acquire()
        lock.release()

    yield pair


PAIRS: Mapping[str, Callable[..., Any]] = {
    "redis-py": redis_pair, "etcd3gw": etcd_pair, "kazoo": zookeeper_pair,
}  # fmt: skip


# -- servers


class Server:
    """The servers of one peer. ``with`` starts and ends them; ``port`` is one that clients use."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.port = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="vsync-peer-"))
            stack.callback(shutil.rmtree, folder, True)
            self.port, commands = COMMANDS[self.peer](folder)
            for number, command in enumerate(commands):
                log = stack.enter_context(open(folder / f"log{number}", "wb"))
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent()
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
            self._wait_ready(folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _wait_ready(self, folder: Path) -> None:
        """Until a pair succeeds."""
        limit = time.monotonic() + START_S
        while True:
            done = subprocess.run(
                [sys.executable, "-m", "dlm.bench.peers", self.peer, str(self.port)],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, timeout=START_S,
            )  # fmt: skip
            if done.returncode == 0:
                return
            if time.monotonic() > limit:
                logs = "".join(file.read_text(errors="replace")[-600:] for file in sorted(folder.glob("log*")))
                raise VsyncError(f"{self.peer}: its servers did not start: {done.stderr[-300:]}\n{logs}")


def missing(peer: str) -> str:
    """Why it cannot be measured here; empty if it can."""
    program, package, module = PEERS[peer]
    if program.startswith("/"):
        if not glob.glob(program):
            return f"{program} is not installed (package {package})"
        if shutil.which("java") is None:
            return "java is not installed (package default-jre-headless)"
    elif shutil.which(program) is None:
        return f"{program} is not installed (package {package})"
    if importlib.util.find_spec(module) is None:
        return f"the Python package {module} is not installed (the extra peers)"
    return ""


#: Program, Debian package, Python module.
PEERS = {
    "redis-py": ("redis-server", "redis-server", "redis"),
    "etcd3gw": ("etcd", "etcd-server", "etcd3gw"),
    "kazoo": (f"{JARS}/zookeeper-3*.jar", "zookeeper", "kazoo"),
}


def _redis(folder: Path) -> tuple[int, list[Sequence[str]]]:
    (port,) = free_ports(1)
    return port, [
        ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    ]


def _etcd(folder: Path) -> tuple[int, list[Sequence[str]]]:
    ports = free_ports(6)
    clients, peers = ports[:3], ports[3:]
    cluster = ",".join(f"n{n}=http://127.0.0.1:{port}" for n, port in enumerate(peers))
    return clients[0], [
        [
            "etcd", "--name", f"n{n}", "--data-dir", str(folder / f"n{n}"), "--initial-cluster", cluster,
            *(f"--{key}=http://127.0.0.1:{client}" for key in ("listen-client-urls", "advertise-client-urls")),
            *(f"--{key}=http://127.0.0.1:{peer}" for key in ("listen-peer-urls", "initial-advertise-peer-urls")),
        ]
        for n, (client, peer) in enumerate(zip(clients, peers, strict=True))
    ]  # fmt: skip


def _zookeeper(folder: Path) -> tuple[int, list[Sequence[str]]]:
    ports = free_ports(9)
    servers = "".join(f"server.{n + 1}=127.0.0.1:{ports[n]}:{ports[n + 3]}\n" for n in range(3))
    commands: list[Sequence[str]] = []
    for n in range(3):
        data = folder / f"z{n}"
        data.mkdir()
        (data / "myid").write_text(str(n + 1))
        config = folder / f"z{n}.cfg"
        config.write_text(
            f"tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={data}\nclientPort={ports[n + 6]}\n"
            f"admin.enableServer=false\n{servers}"
        )
        jars = ":".join(sorted(glob.glob(f"{JARS}/*.jar")))
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        commands.append(["java", "-Xmx512m", "-cp", jars, main, str(config)])
    return ports[6], commands


COMMANDS: Mapping[str, Callable[[Path], tuple[int, list[Sequence[str]]]]] = {
    "redis-py": _redis, "etcd3gw": _etcd, "kazoo": _zookeeper,
}  # fmt: skip


if __name__ == "__main__":  # one pair, to see whether the servers are there
    with PAIRS[sys.argv[1]](sys.argv[2], "try") as only:
        only()
