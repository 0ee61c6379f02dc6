"""A running node whose ring is on a thread of this process."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vsync.clock import first_ring_seq
from vsync.core import Core
from vsync.dumps import Dumps
from vsync.embedded import LocalChannel
from vsync.errors import StateDirectoryError
from vsync.ipc import Channel
from vsync.logs import get_logger
from vsync.loop import Loop
from vsync.plan import LEAVE_S, STOP_S, Plan
from vsync.plugins import check_services, load_services
from vsync.recorder import Recorder
from vsync.storage import MemoryStorage, StateDirectory, Storage
from vsync.transport import Transport
from vsync.transport.options import TransportConfig, check_addresses, open_transport
from vsync.types import ClusterConfig

if TYPE_CHECKING:
    from vsync.aio import LoopChannel

__all__ = ["NodeThread"]

_log = get_logger("vsync.node")


class NodeThread:
    """See ``Running``. Made, it runs. ``config`` is the plan's with what is known of this host.

    Raises ``ConfigError``, ``StateDirectoryError``, ``TransportError``; nothing is left open then.
    """

    def __init__(self, plan: Plan) -> None:
        self.config = plan.config
        self.pid = os.getpid()
        self._plan = plan
        services = load_services(plan.config) if plan.services is None else list(plan.services)
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
                    f"state directory {plan.state_dir}: the record cannot be used: {e}"
                ) from e
            loop = Loop(core, transport, storage, dumps)
            if plan.socket is not None:
                loop.listen(plan.socket, plan.runtime_dir or plan.socket.parent)
        except BaseException:
            if loop is not None:
                loop.discard()
            storage.close()
            if transport is not None:
                transport.close()
            raise
        self._loop = loop
        _log.info("node_started", node=plan.name, id=self.config.node, cluster=self.config.cluster)
        self._thread = threading.Thread(target=loop.run, name=f"vsync-{plan.name}", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """See ``Running``."""
        return self._loop.failure

    def leave(self) -> None:
        """See ``Running``."""
        self._loop.leave()

    def stop(self, graceful: bool) -> None:
        """See ``Running``."""
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
        """See ``Running``."""
        self._loop.record(reason)

    def wait(self, timeout: float | None) -> bool:
        """See ``Running``."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def channel(self, name: str) -> Channel:
        """See ``Running``."""
        return LocalChannel(self._loop, name)

    async def async_channel(self, name: str) -> LoopChannel:
        """See ``Running``."""
        from vsync.aio import connect_local

        return await connect_local(self._loop, name)

    def _dumps(self) -> Dumps | None:
        if self._plan.state_dir is None or not self._plan.recorder_bytes:
            return None
        return Dumps(Recorder(self._plan.recorder_bytes), Path(self._plan.state_dir) / "flight")

    def _open_transport(self, incarnation: int) -> Transport:
        if isinstance(self._plan.transport, TransportConfig):
            return open_transport(self.config, self._plan.transport, incarnation)
        return self._plan.transport

    def _check(self, config: ClusterConfig) -> None:
        if isinstance(self._plan.transport, TransportConfig):
            check_addresses(config, self._plan.transport)

    def _open_storage(self) -> Storage:
        if self._plan.state_dir is None:
            return MemoryStorage()
        return StateDirectory(self._plan.state_dir, self.config.cluster, self.config.node)
