"""A node of a cluster in this process: what ``vsyncd`` runs, and what a program can embed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vsync.client import Client, ClusterView, Group
from vsync.clock import first_ring_seq
from vsync.config import load
from vsync.core import Core
from vsync.dumps import Dumps
from vsync.embedded import LocalChannel
from vsync.errors import ConfigError, ForkedProcess, NotConnected, StateDirectoryError, VsyncError
from vsync.ipc import Channel
from vsync.logs import get_logger
from vsync.loop import Loop
from vsync.plugins import check_services, load_services
from vsync.recorder import Recorder
from vsync.service import Service
from vsync.storage import MemoryStorage, StateDirectory, Storage
from vsync.transport import Transport
from vsync.transport.options import TransportConfig, check_addresses, open_transport
from vsync.types import ClusterConfig

if TYPE_CHECKING:
    from vsync.aio import LoopChannel

__all__ = ["Node"]

RECORDER_BYTES = 16 << 20
LEAVE_S = 5.0  #: how long ``stop`` waits for a graceful leave
STOP_S = 3.0

_log = get_logger("vsync.node")


class Node:
    """One node. Its ring runs on a thread of its own; no user code runs there.

    ``config``: a ``ClusterConfig`` or the path of a configuration file. ``name``: which of its nodes this is
    (default: the one that the configuration says). ``transport``: a ``TransportConfig`` (kind, key), or a
    transport, which the node closes; default what the file says, for a ``ClusterConfig`` ZeroMQ without a key.
    ``state_dir``: default none – ring ids and incarnations are then not kept, which is for tests and for nodes
    that hold nothing. ``services``: default those that are installed (``vsync.services`` entry points).
    ``socket``: a path to serve other processes at. ``recorder_bytes``: memory of the flight recorder, which
    needs a state directory to write to; 0 turns it off. Thread-safe. A thread that keeps the GIL slows the
    ring down.

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
    ) -> None:
        """Raises ``ConfigError``; opens nothing yet."""
        if config is None:
            raise ConfigError("a node needs a configuration: config=ClusterConfig(...) or the path of a file")
        if isinstance(config, ClusterConfig):
            self.config, chosen = _named(config, name), TransportConfig()
        else:
            settings = load(config, name)
            self.config, chosen = settings.cluster, settings.transport
        self._transport = transport if transport is not None else chosen
        self._state_dir = state_dir
        self._services = services
        self._socket = Path(socket) if socket is not None else None
        self._runtime_dir = Path(runtime_dir) if runtime_dir is not None else None
        self._recorder_bytes = recorder_bytes
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._client: Client | None = None
        self._client_lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def name(self) -> str:
        """The node's name in its cluster."""
        return self.config.name(self.config.node)

    @property
    def failure(self) -> Exception | None:
        """Why the node died, if it did."""
        return self._loop.failure if self._loop else None

    def start(self) -> Self:
        """Open state directory, transport and socket, and begin to look for the others; returns at once.

        Raises ``ConfigError``, ``StateDirectoryError``, ``TransportError``; nothing is left open then.
        """
        if self._loop is not None:
            raise VsyncError("a Node can be started once; make another one")
        services = load_services(self.config) if self._services is None else list(self._services)
        check_services(services)
        storage = self._open_storage()
        transport: Transport | None = None
        loop: Loop | None = None
        try:
            transport = self._open_transport(storage.incarnation)
            room = min(self.config.packet_bytes, transport.packet_bytes)
            self.config = replace(self.config, packet_bytes=room, uid=os.geteuid())
            start_seq = first_ring_seq() if storage.record is None else 0
            dumps = self._dumps()
            recorder = dumps.recorder if dumps else None
            try:
                known = storage.incarnation, services, storage.record, start_seq
                core = Core(self.config, *known, recorder, os.getuid(), self._check)
            except ValueError as e:
                raise StateDirectoryError(
                    f"state directory {self._state_dir}: the record cannot be used: {e}"
                ) from e
            loop = Loop(core, transport, storage, dumps)
            if self._socket is not None:
                loop.listen(self._socket, self._runtime_dir or self._socket.parent)
        except BaseException:
            if loop is not None:
                loop.discard()
            storage.close()
            if transport is not None:
                transport.close()
            raise
        self._loop = loop
        _log.info("node_started", node=self.name, id=self.config.node, cluster=self.config.cluster)
        self._thread = threading.Thread(target=loop.run, name=f"vsync-{self.name}", daemon=True)
        self._thread.start()
        return self

    def leave(self) -> None:
        """Begin to leave the ring, and return; ``stop`` waits for the end of it. Idempotent."""
        if self._loop is not None and os.getpid() == self._pid:
            self._loop.leave()

    def stop(self, graceful: bool = True) -> None:
        """Leave the ring (``graceful``: the others are told, which costs milliseconds) and end all sessions.

        Idempotent. A graceful leave that takes more than 5 s is cut short.
        """
        if self._loop is None or self._thread is None or os.getpid() != self._pid:
            return
        if graceful and self._thread.is_alive():
            self.leave()
            self._thread.join(LEAVE_S)
            if self._thread.is_alive():
                _log.warning("leave_cut_short", after_s=LEAVE_S)
        self._loop.stop()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            _log.error("node_does_not_stop", after_s=STOP_S)

    def record(self, reason: str) -> None:
        """Have the flight recorder write what it has into the state directory; the log says which file."""
        if self._loop is not None:
            self._loop.record(reason)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the node has ended, by whatever cause; false after ``timeout`` seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def channel(self, name: str = "embedded") -> Channel:
        """A new session with this node. Raises ``NotConnected`` when it is not running."""
        return LocalChannel(self._started(), name)

    async def async_channel(self, name: str = "embedded") -> LoopChannel:
        """As ``channel``, for the running event loop: it takes no thread, and is used in that loop only."""
        from vsync.aio import connect_local

        return await connect_local(self._started(), name)

    def status(self) -> dict[str, Any]:
        """A snapshot, as ``vsync status --json`` shows it. Raises ``NotConnected``."""
        return self._own_client().status()

    def views(self) -> Iterator[ClusterView]:
        """The cluster's views: the current one first, then every change. Raises ``NotConnected`` at the end."""
        return self._own_client().views()

    def join(self, group: str) -> Group:
        """Join a named group, as a session of its own. Raises ``NotConnected``."""
        return Client(self.channel(), owned=True).join(group)

    def _started(self) -> Loop:
        if os.getpid() != self._pid:
            raise ForkedProcess(f"this node runs in process {self._pid}; start another one in the child")
        if self._loop is None:
            raise NotConnected("the node has not been started")
        return self._loop

    def _own_client(self) -> Client:
        with self._client_lock:
            if self._client is None:
                self._client = Client(self.channel("node"))
            return self._client

    def _dumps(self) -> Dumps | None:
        if self._state_dir is None or not self._recorder_bytes:
            return None
        return Dumps(Recorder(self._recorder_bytes), Path(self._state_dir) / "flight")

    def _open_transport(self, incarnation: int) -> Transport:
        if isinstance(self._transport, TransportConfig):
            return open_transport(self.config, self._transport, incarnation)
        return self._transport

    def _check(self, config: ClusterConfig) -> None:
        if isinstance(self._transport, TransportConfig):
            check_addresses(config, self._transport)

    def _open_storage(self) -> Storage:
        if self._state_dir is None:
            return MemoryStorage()
        return StateDirectory(self._state_dir, self.config.cluster, self.config.node)

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
