"""The floor of all that crosses a network here: one datagram to another process and back, and nothing else done."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from vsync.bench.rows import Sample, sample
from vsync.bench.workers import Handler, Workers
from vsync.clock import boot_us
from vsync.errors import VsyncError

__all__ = ["ONE_BY_ONE", "BareHop"]

ONE_BY_ONE = "bare hops, one by one"  #: who ``BareHop.rate`` is, as a peer

BIGGEST = 60_000
PATIENCE_S = 10.0


class BareHop:
    """Two processes over the loopback; ``with`` starts and ends the other one."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def latency(self, size: int, count: int) -> Sample:
        """µs from one process to the other: half of a turn."""
        data = bytes(min(size, BIGGEST))
        times = []
        for _ in range(count):
            began = boot_us()
            self._socket.send(data)
            self._socket.recv(BIGGEST)
            times.append((boot_us() - began) / 2)
        return sample(times)

    def rate(self, size: int, count: int) -> Sample:
        """So many a second, one after the other."""
        return Sample(1e6 / self.latency(size, count).value)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._socket)
            other = stack.enter_context(Workers([(_echo, ())]))
            self._socket.connect(("127.0.0.1", other.ask(0)))
            self._socket.settimeout(PATIENCE_S)
            try:
                self.latency(1, 10)
            except TimeoutError:
                raise VsyncError("no datagram comes back over the loopback") from None
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


@contextlib.contextmanager
def _echo() -> Iterator[Handler]:
    """The body of the other process: tells its port, and sends back what comes there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind(("127.0.0.1", 0))
        threading.Thread(target=_send_back, args=(door,), daemon=True).start()
        yield lambda: door.getsockname()[1]


def _send_back(door: socket.socket) -> None:
    with contextlib.suppress(OSError):  # at the end
        while True:
            data, address = door.recvfrom(BIGGEST)
            door.sendto(data, address)
