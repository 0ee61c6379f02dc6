"""A node of a cluster in this process: what ``vsyncd`` runs, and what a program can embed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vsync.client import Client, ClusterView, Group
from vsync.config import load
from vsync.errors import ConfigError, ForkedProcess, NotConnected, VsyncError
from vsync.ipc import Channel
from vsync.node_process import NodeProcess
from vsync.node_thread import NodeThread
from vsync.plan import Plan, Running
from vsync.service import Service
from vsync.transport import Transport
from vsync.transport.options import TransportConfig
from vsync.types import ClusterConfig

if TYPE_CHECKING:
    from vsync.aio import LoopChannel

__all__ = ["Node"]

RECORDER_BYTES = 16 << 20


class Node:
    """One node. Its ring runs on a thread of its own; no user code runs there.

    ``config``: a ``ClusterConfig`` or the path of a configuration file. ``name``: which of its nodes this is
    (default: the one that the configuration says). ``transport``: a ``TransportConfig`` (kind, key), or a
    transport, which the node closes; default what the file says, for a ``ClusterConfig`` ZeroMQ without a key.
    ``state_dir``: default none – ring ids and incarnations are then not kept, which is for tests and for nodes
    that hold nothing. ``services``: default those that are installed (``vsync.services`` entry points).
    ``socket``: a path to serve other processes at. ``recorder_bytes``: memory of the flight recorder, which
    needs a state directory to write to; 0 turns it off. Thread-safe.

    Threads of this program that compute keep the interpreter busy, for which the ring has to wait, and all nodes
    with it. With ``process=True`` the ring is in a child process (docs/embedding.md), which ends when this one
    does; then ``transport`` cannot be an open one, and ``services`` not be given.

    Usable once, as a context manager: ``with vsync.Node(config="cluster.toml", name="a") as node``.
    """

    def __init__(
        self,
        name: str | None = None,
        config: ClusterConfig | str | os.PathLike[str] | None = None,
        *,
        transport: Transport | TransportConfig | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        services: Sequence[Service] | None = None,
        socket: str | os.PathLike[str] | None = None,
        runtime_dir: str | os.PathLike[str] | None = None,
        recorder_bytes: int = RECORDER_BYTES,
        process: bool = False,
    ) -> None:
        """Raises ``ConfigError``; opens nothing yet."""
        if config is None:
            raise ConfigError("a node needs a configuration: config=ClusterConfig(...) or the path of a file")
        if isinstance(config, ClusterConfig):
            self.config, chosen = _named(config, name), TransportConfig()
        else:
            settings = load(config, name)
            self.config, chosen = settings.cluster, settings.transport
        self._plan = Plan(
            self.config,
            transport if transport is not None else chosen,
            state_dir,
            services,
            Path(socket) if socket is not None else None,
            Path(runtime_dir) if runtime_dir is not None else None,
            recorder_bytes,
        )
        self._how: Callable[[Plan], Running] = NodeProcess if process else NodeThread
        self._running: Running | None = None
        self._client: Client | None = None
        self._client_lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def name(self) -> str:
        """The node's name in its cluster."""
        return self.config.name(self.config.node)

    @property
    def pid(self) -> int:
        """Of the process that its ring is in; 0 before the start."""
        return self._running.pid if self._running else 0

    @property
    def failure(self) -> Exception | None:
        """Why the node died, if it did."""
        return self._own.failure if self._own else None

    def start(self) -> Self:
        """Open state directory, transport and socket, and begin to look for the others; returns at once.

        Raises ``ConfigError``, ``StateDirectoryError``, ``TransportError``; nothing is left open then.
        """
        if self._running is not None:
            raise VsyncError("a Node can be started once; make another one")
        self._running = self._how(self._plan)
        self.config = self._running.config
        return self

    def leave(self) -> None:
        """Begin to leave the ring, and return; ``stop`` waits for the end of it. Idempotent."""
        if self._own is not None:
            self._own.leave()

    def stop(self, graceful: bool = True) -> None:
        """Leave the ring (``graceful``: the others are told, which costs milliseconds) and end all sessions.

        Idempotent. A graceful leave that takes more than 5 s is cut short.
        """
        if self._own is not None:
            self._own.stop(graceful)

    def record(self, reason: str) -> None:
        """Have the flight recorder write what it has into the state directory; the log says which file."""
        if self._own is not None:
            self._own.record(reason)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the node has ended, by whatever cause; false after ``timeout`` seconds."""
        return self._own is None or self._own.wait(timeout)

    def channel(self, name: str = "embedded") -> Channel:
        """A new session with this node. Raises ``NotConnected`` when it is not running."""
        return self._started().channel(name)

    async def async_channel(self, name: str = "embedded") -> LoopChannel:
        """As ``channel``, for the running event loop: it takes no thread, and is used in that loop only."""
        return await self._started().async_channel(name)

    def status(self) -> dict[str, Any]:
        """A snapshot, as ``vsync status --json`` shows it. Raises ``NotConnected``."""
        return self._own_client().status()

    def views(self) -> Iterator[ClusterView]:
        """The cluster's views: the current one first, then every change. Raises ``NotConnected`` at the end."""
        return self._own_client().views()

    def join(self, group: str) -> Group:
        """Join a named group, as a session of its own. Raises ``NotConnected``."""
        return Client(self.channel(), owned=True).join(group)

    @property
    def _own(self) -> Running | None:
        """What runs, if it was started, and by this process rather than by one that has forked it."""
        return self._running if os.getpid() == self._pid else None

    def _started(self) -> Running:
        if os.getpid() != self._pid:
            raise ForkedProcess(f"this node runs in process {self._pid}; start another one in the child")
        if self._running is None:
            raise NotConnected("the node has not been started")
        return self._running

    def _own_client(self) -> Client:
        with self._client_lock:
            if self._client is None:
                self._client = Client(self.channel("node"))
            return self._client

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _named(config: ClusterConfig, name: str | None) -> ClusterConfig:
    if name is not None:
        peer = next((p for p in config.peers if p.name == name), None)
        if peer is None:
            raise ConfigError(f"node {name!r} is not among {', '.join(p.name for p in config.peers)}")
        config = replace(config, node=peer.node)
    if config.peer(config.node) is None:
        raise ConfigError(f"node {config.node} is not among the configured nodes")
    return config
