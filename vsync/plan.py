"""What a node is to be, and what one that runs can be asked, be it on a thread or in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vsync.ipc import Channel
from vsync.service import Service
from vsync.transport import Transport
from vsync.transport.options import TransportConfig
from vsync.types import ClusterConfig

if TYPE_CHECKING:
    from vsync.aio import LoopChannel

__all__ = ["LEAVE_S", "STOP_S", "Plan", "Running"]

LEAVE_S = 5.0  #: how long ``stop`` waits for a graceful leave
STOP_S = 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments of ``vsync.Node``, checked."""

    config: ClusterConfig
    transport: Transport | TransportConfig
    state_dir: str | os.PathLike[str] | None
    services: Sequence[Service] | None
    socket: Path | None
    runtime_dir: Path | None
    recorder_bytes: int

    @property
    def name(self) -> str:
        """The node's name in its cluster."""
        return self.config.name(self.config.node)


class Running(Protocol):
    """A node that was started. All methods are thread-safe, and are called in the process that started it."""

    config: ClusterConfig
    pid: int  #: of the process that the ring is in

    @property
    def failure(self) -> Exception | None:
        """Why the node died, if it did."""

    def leave(self) -> None:
        """Begin to leave the ring."""

    def stop(self, graceful: bool) -> None:
        """Leave the ring, if ``graceful``, and end."""

    def record(self, reason: str) -> None:
        """Have the flight recorder write what it has."""

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end of it; false if it has not come."""
        ...

    def channel(self, name: str) -> Channel:
        """A new session. Raises ``NotConnected`` if it does not run any more."""
        ...

    async def async_channel(self, name: str) -> LoopChannel:
        """As ``channel``, for the running event loop."""
        ...
