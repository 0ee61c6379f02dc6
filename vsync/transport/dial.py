"""One outgoing ZeroMQ connection: whether it stands, and whether anybody listens at the other end.

libzmq tells of its connections through a monitor socket. A connection that breaks is no evidence of anything:
a cable, a firewall, a restart of a switch do that. Evidence that the *process* is dead is a connection that
broke **and** a port that refuses the next one. libzmq does not say why an attempt failed, so this module makes
one of its own, beside libzmq's: a plain TCP connect whose error is known.

The kernel may close the sockets of a dying process in any order, so that the port still accepts for an instant
after the connection broke: a few attempts are made, a few milliseconds apart.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable
from socket import SO_ERROR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, socket

import zmq

from vsync.transport.address import Target

__all__ = ["EVENTS", "NEVER", "Dial", "Event", "read_events"]

NEVER = 1 << 62  #: a deadline

REDIAL_US = 1_000_000  #: after a handshake that failed
TRIES_US = (0, 5_000, 15_000, 40_000, 100_000)  #: after the break
EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)

_EVENT = struct.Struct("=Hi")
Event = tuple[int, int]  # kind, value


def read_events(monitor: zmq.Socket[bytes]) -> list[Event]:
    """All that wait. The descriptor of a zmq socket is only readable again when nothing is left unread."""
    events: list[Event] = []
    try:
        while True:
            events.append(_EVENT.unpack_from(monitor.recv_multipart(zmq.DONTWAIT)[0]))
    except zmq.Again:
        return events


class Dial:
    """A PUSH socket to address ``target`` (``None``: unknown, there will be no evidence) of ``node``."""

    def __init__(
        self,
        node: int,
        link: int,
        address: str,
        push: zmq.Socket[bytes],
        target: Target | None,
    ) -> None:
        self.node = node
        self.link = link
        self.address = address
        self.push = push
        self.monitor: zmq.Socket[bytes] = push.get_monitor_socket(EVENTS)
        self.connected = False
        self.refused = False  #: it broke, and the port refuses
        self._target = target
        self._probe: socket | None = None
        self._broke = 0
        self._tries = len(TRIES_US)  # made since it broke
        self._redial: int | None = None

    def made(self) -> None:
        """libzmq has connected, and the two have greeted each other."""
        self.connected, self.refused = True, False
        self._redial = None
        self._tries = len(TRIES_US)

    def broke(self, now: int) -> bool:
        """The connection is gone; false if it never stood."""
        if not self.connected:
            return False
        self.connected = False
        self._broke, self._tries = now, 0
        return True

    def failed(self, now: int) -> None:
        """The two do not understand each other. After most errors of this kind libzmq gives up for ever, but the
        peer may be restarted with another configuration.
        """
        if self._redial is None:
            self._redial = now + REDIAL_US

    def redial(self, url: str, now: int) -> None:
        """Connect again, if it is time to."""
        if self._redial is not None and self._redial <= now:
            self._redial = None
            with contextlib.suppress(zmq.ZMQError):  # it may have given up, or not
                self.push.disconnect(url)
            self.push.connect(url)

    @property
    def deadline(self) -> int:
        """When to ``redial`` or to ``probe``; far away if never."""
        return min(self._redial or NEVER, self.probe_at)

    @property
    def probe_at(self) -> int:
        """When to ``probe``; far away if never."""
        if self._target is None or self._probe is not None or self._tries >= len(TRIES_US):
            return NEVER
        return self._broke + TRIES_US[self._tries]

    def probe(self, watch: Callable[[int], None]) -> None:
        """Try to connect; ``watch`` is called with a descriptor that becomes writable with the result."""
        assert self._target is not None
        self._tries += 1
        family, address = self._target
        probe = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        error = probe.connect_ex(address)
        if error == errno.EINPROGRESS:
            self._probe = probe
            watch(probe.fileno())
        else:
            probe.close()
            self._judge(error)

    def probed(self) -> None:
        """The descriptor is ready. It is closed, which ends its registration."""
        assert self._probe is not None
        error = self._probe.getsockopt(SOL_SOCKET, SO_ERROR)
        self._probe.close()
        self._probe = None
        self._judge(error)

    def aim(self, target: Target | None) -> None:
        """The host name has been looked up. May be called by another thread."""
        self._target = target

    @property
    def probing(self) -> int | None:
        """The descriptor that is being watched, if one is."""
        return self._probe.fileno() if self._probe is not None else None

    def close(self) -> None:
        """Give the probe free."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _judge(self, error: int) -> None:
        if error == errno.ECONNREFUSED and not self.connected:
            self.refused = True
            self._tries = len(TRIES_US)
