"""A cable that can be cut: forwards TCP connections and UDP datagrams between two ports of the loopback."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

from vsync.testcluster import free_ports

__all__ = ["TcpRelay", "UdpRelay"]


class TcpRelay:
    """Connections to ``port`` go to ``target`` on the loopback. Usable from any thread."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._cut = False
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """From now on nothing passes, and nobody is told: bytes vanish, connections stay."""
        self._cut = True

    def heal(self) -> None:
        """What comes now passes; connections that lost bytes are reset."""
        self.reset()
        self._cut = False

    def reset(self) -> None:
        """Break all connections; new ones are accepted."""
        with self._lock:
            for end in self._pairs:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End."""
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while not self._over:
                for key, _ in selector.select(0.02):
                    end = key.fileobj
                    assert isinstance(end, socket.socket)
                    if end is self._server:
                        self._accept(selector)
                    elif end in self._pairs:
                        self._forward(end, selector)
            for end in [*self._pairs, self._server]:
                end.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        near, _ = self._server.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            near.close()
            return
        with self._lock:
            self._pairs[near], self._pairs[far] = far, near
        selector.register(near, selectors.EVENT_READ)
        selector.register(far, selectors.EVENT_READ)

    def _forward(self, end: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            data = end.recv(1 << 16)
            if data and not self._cut:
                self._pairs[end].sendall(data)
        except OSError:
            data = b""
        if not data:
            with self._lock:
                other = self._pairs.pop(end)
                del self._pairs[other]
            for each in (end, other):
                selector.unregister(each)
                each.close()


class UdpRelay:
    """Datagrams to ``port`` and the next one go to ``target`` and the next one, from other ports."""

    def __init__(self, target: int) -> None:
        (self.port,) = free_ports(1)
        self._cut = False
        self._over = False
        self._lanes = []
        for lane in (0, 1):
            door, far = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
            door.bind(("127.0.0.1", self.port + lane))
            door.setblocking(False)
            far.connect(("127.0.0.1", target + lane))
            self._lanes.append((door, far))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._cut = True

    def heal(self) -> None:
        """What comes now passes."""
        self._cut = False

    def close(self) -> None:
        """End: its ports refuse from now on."""
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for door, far in self._lanes:
                selector.register(door, selectors.EVENT_READ, far)
            while not self._over:
                for key, _ in selector.select(0.02):
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(OSError):
                        data = key.fileobj.recv(1 << 16)
                        if not self._cut:
                            key.data.send(data)
        for lane in self._lanes:
            for end in lane:
                end.close()
