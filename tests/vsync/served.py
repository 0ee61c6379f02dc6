"""A loop that serves clients, with a core that does what a test tells it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from tests.vsync.support import FakeCore, FakeLeases
from vsync.loop import Loop
from vsync.storage import MemoryStorage
from vsync.transport.memory import MemoryHub


class Served:
    """A loop with a fake core that serves ``path``."""

    def __init__(self, folder: Path) -> None:
        self.leases = FakeLeases()
        self.core = FakeCore(services=[self.leases])
        self.path = folder / "d.sock"
        self.loop = Loop(self.core, MemoryHub().transport(1), MemoryStorage())  # type: ignore[arg-type]
        self.loop.listen(self.path, folder)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def stop(self) -> None:
        self.loop.leave()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def raw(self) -> socket.socket:
        s = socket.socket(socket.AF_UNIX)
        s.connect(str(self.path))  # blocking: with a timeout it fails at once when the backlog is full
        s.settimeout(20)
        return s
