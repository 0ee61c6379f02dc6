"""A cluster of real ``vsyncd`` processes on this machine's loopback: for ``vsync demo`` and for live tests.

Every node has its own configuration file, socket, state and log in one folder. The processes die with the one
that started them. Nodes are killed, stopped (SIGSTOP), continued and restarted by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from vsync import client
from vsync.errors import NotConnected, RequestFailed, VsyncError
from vsync.keys import create_key_file

__all__ = ["ClusterError", "LocalCluster", "LocalNode", "die_with_parent", "free_ports"]

READY_S = 20.0
LEAVE_S = 10.0
CLOSE_S = 2.0
PORTS = range(20_000, 32_000, 2)
POLL_S = 0.02
KEY_FILE = "cluster.key"
_given: set[int] = set()  # by ``free_ports``: whoever has them may not have bound them yet
_PR_SET_PDEATHSIG = 1


class ClusterError(VsyncError):
    """The cluster did not do what was waited for; the text has the end of the logs."""


@dataclass(slots=True)
class LocalNode:
    """One node of the cluster. ``process`` is that of its present or last life."""

    id: int
    name: str
    addresses: tuple[str, ...]  #: one for each link
    socket: Path
    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The address of the first link."""
        return self.addresses[0]

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Process id of the present or last life, 0 before the first."""
        return self.process.pid if self.process is not None else 0

    @property
    def running(self) -> bool:
        """Whether its process exists (it may be stopped)."""
        return self.process is not None and self.process.poll() is None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "name": self.name,
            "pid": self.pid,
            "socket": str(self.socket),
            "url": self.url,
            "config": str(self.config),
        }


class LocalCluster:
    """``nodes`` daemons named a, b, c, …; ``with`` starts them and ends them. Not thread-safe.

    ``folder`` (default: a temporary one, removed at the end) must have a short path, as Unix sockets lie in
    it. ``timing`` are keys of the configuration's ``[timing]`` table, in milliseconds; ``settings`` more keys
    of its ``[cluster]`` table, with texts for values. The nodes share a cluster key made for them, unless ``key``
    is false, and have ``links`` addresses each: 127.0.0.1, 127.0.0.2, ….
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        folder: str | os.PathLike[str] | None = None,
        name: str = "local",
        timing: Mapping[str, float] | None = None,
        settings: Mapping[str, str] | None = None,
        key: bool = True,
        links: int = 1,
    ) -> None:
        self.name = name
        self.settings = dict(settings or {})
        ports = free_ports(nodes)
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="vsync-")) if folder is None else Path(folder)
        self.nodes = [self._node(index, port, links) for index, port in enumerate(ports)]
        if key:
            create_key_file(self.folder / KEY_FILE)
            self.settings.setdefault("key", KEY_FILE)
        self._timing = dict(timing or {})
        for node in self.nodes:
            node.config.write_text(self._configuration(node, self._timing))

    # -- life and death

    def start(self) -> None:
        """Start every node and wait until all are in one primary view. Raises ``ClusterError``."""
        for node in self.nodes:
            self._start(node)
        self.wait_view(self.names)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Kill a node's process and wait for its end; nothing is said to the others."""
        node = self[name]
        assert node.process is not None
        node.process.send_signal(number)
        node.process.wait()

    def stop(self, name: str) -> None:
        """SIGSTOP: the node stands still, its sockets stay open."""
        os.kill(self[name].pid, signal.SIGSTOP)

    def cont(self, name: str) -> None:
        """SIGCONT."""
        os.kill(self[name].pid, signal.SIGCONT)

    def leave(self, name: str) -> int:
        """SIGTERM, a graceful leave; returns the exit code. Raises ``ClusterError`` if it takes too long."""
        node = self[name]
        assert node.process is not None
        node.process.terminate()
        try:
            return node.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"node {name} has not left within {LEAVE_S:g} s{self._logs([node])}") from None

    def restart(self, name: str) -> None:
        """Start a node that is not running any more; does not wait for a view."""
        node = self[name]
        if node.running:
            raise ValueError(f"node {name} is running")
        self._start(node)

    def enlist(self) -> LocalNode:
        """One node more, with a file that lists all; ``restart`` starts it. The others know nothing of it."""
        links = len(self.nodes[0].addresses)
        node = self._node(len(self.nodes), free_ports(1)[0], links)
        self.nodes.append(node)
        node.config.write_text(self._configuration(node, self._timing))
        return node

    def move(self, name: str) -> LocalNode:
        """Give a node that does not run new ports and an empty disk, and tell its file."""
        node = self[name]
        if node.running:
            raise ValueError(f"node {name} is running")
        node.addresses = self._node(node.id - 1, free_ports(1)[0], len(node.addresses)).addresses
        shutil.rmtree(self.folder / name, ignore_errors=True)
        node.config.write_text(self._configuration(node, self._timing))
        return node

    def close(self) -> None:
        """End all processes, gracefully if they can, and remove the folder if it was made here. Idempotent.
        """
        running = [node.process for node in self.nodes if node.process is not None and node.running]
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        limit = time.monotonic() + CLOSE_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(limit - time.monotonic(), POLL_S))
            process.kill()
            process.wait()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- looking

    @property
    def names(self) -> list[str]:
        """Names of all nodes."""
        return [node.name for node in self.nodes]

    @property
    def running(self) -> list[str]:
        """Names of the nodes whose process exists."""
        return [node.name for node in self.nodes if node.running]

    def __getitem__(self, name: str) -> LocalNode:
        """The node with this name. Raises ``KeyError``."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def status(self, name: str) -> dict[str, Any] | None:
        """The node's status, or ``None`` if it cannot be asked at the moment."""
        try:
            with client.connect(self[name].url, "testcluster") as session:
                return session.status()
        except (NotConnected, RequestFailed, TimeoutError):
            return None

    def wait_view(self, names: Iterable[str], timeout_s: float = READY_S) -> dict[str, Any]:
        """Wait until all of ``names`` are in the same primary view of exactly them; returns the view."""
        wanted = sorted(names)
        found: list[dict[str, Any]] = []

        def agreed() -> bool:
            views = [(self.status(name) or {}).get("view") for name in wanted]
            found[:] = [view for view in views if view and view["primary"] and _members(view) == wanted]
            return len(found) == len(wanted) and len({view["id"] for view in found}) == 1

        self.wait(agreed, f"no primary view of {', '.join(wanted)}", timeout_s)
        return found[0]

    def wait(self, condition: Callable[[], bool], failure: str, timeout_s: float = READY_S) -> None:
        """Poll until ``condition()``. Raises ``ClusterError`` with ``failure`` and the logs, or if a daemon
        ends on its own while it is waited for.
        """
        limit = time.monotonic() + timeout_s
        while not condition():
            ended = [node for node in self.nodes if node.process is not None and (node.process.poll() or 0) > 0]
            if ended:
                raise ClusterError(f"node {ended[0].name} has ended on its own{self._logs(ended)}")
            if time.monotonic() >= limit:
                raise ClusterError(f"{failure} within {timeout_s:g} s{self._logs(self.nodes)}")
            time.sleep(POLL_S)

    def __enter__(self) -> LocalCluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- details

    def _node(self, index: int, port: int, links: int) -> LocalNode:
        name = chr(ord("a") + index) if index < 26 else f"n{index + 1}"
        return LocalNode(
            id=index + 1,
            name=name,
            addresses=tuple(f"127.0.0.{link}:{port}" for link in range(1, links + 1)),
            socket=self.folder / f"{name}.sock",
            config=self.folder / f"{name}.toml",
            log=self.folder / f"{name}.log",
        )

    def _configuration(self, own: LocalNode, timing: Mapping[str, float]) -> str:
        lines = ["[cluster]", f'name = "{self.name}"', *(f'{k} = "{v}"' for k, v in self.settings.items()), ""]
        lines += ["[node]", f'name = "{own.name}"', ""]
        for node in self.nodes:
            addresses = f"addresses = {json.dumps(node.addresses)}"
            lines += ["[[nodes]]", f"id = {node.id}", f'name = "{node.name}"', addresses, ""]
        state, sock = self.folder / own.name, own.socket
        lines += ["[daemon]", f'socket = "{sock}"', f'state_dir = "{state}"', 'log_format = "text"', ""]
        if timing:
            lines += ["[timing]", *(f"{key} = {value:g}" for key, value in sorted(timing.items())), ""]
        return "\n".join(lines)

    def _start(self, node: LocalNode) -> None:
        with open(node.log, "ab") as log:
            node.process = subprocess.Popen(
                [sys.executable, "-m", "vsync.daemon", "--config", str(node.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
                process_group=0,  # Ctrl-C is for us: we end them in order
            )

    def _logs(self, nodes: Sequence[LocalNode]) -> str:
        parts = []
        for node in nodes:
            lines = node.log.read_text(errors="replace").splitlines()[-8:] if node.log.exists() else []
            parts += [f"\n-- log of {node.name}:", *lines]
        return "\n".join(parts)


def _members(view: Mapping[str, Any]) -> list[str]:
    return sorted(member["name"] for member in view["members"])


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that were free a moment ago, for TCP and UDP, and so were the next ones; all different,
    also from those that this process was given before.

    Below the range from which the kernel takes the ports of outgoing connections: a node that is down must
    find its port free when it comes back. Raises ``ClusterError`` if there are not enough.
    """
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(found) == count:
            _given.update(found)
            return found
        if port in _given:
            continue
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for kind, each in itertools.product((socket.SOCK_STREAM, socket.SOCK_DGRAM), (port, port + 1)):
                probes.enter_context(socket.socket(type=kind)).bind(("127.0.0.1", each))
            found.append(port)
    raise ClusterError(f"there are no {count} free ports on 127.0.0.1")


def die_with_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """A ``preexec_fn`` that makes the kernel send ``number`` to the child when the starting thread's
    process ends.

    The thread that starts the child must live as long as the process: start children from the main thread.
    """
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return in_child
