"""ZeroMQ over TCP: a full mesh of one-way connections.

One PULL socket bound at the node's own addresses, one PUSH socket connected to each address of each peer.
libzmq connects, retries and frames; what it does beyond that is turned off, because the engine wants fresh frames
or none: queues are short, nothing is queued for an absent peer (IMMEDIATE), nothing lingers. What an old
connection still holds is judged by the engine by ring id and incarnation. A connection through which nothing comes
for a while is torn down (heartbeats, TCP_MAXRT), so that a healed network is not held up by TCP's retransmission
back-off.

With a key both ends of every connection prove that they know it (CURVE); see ``docs/security.md``.

``zmq.asyncio`` is not used: it costs five to seven times as much per hop (design §6). No thread beyond libzmq's
own: monitors, the ZAP handler and probes are descriptors in one epoll set, which the node's loop polls.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Sequence
from socket import SOCK_STREAM
from typing import Any

import zmq

from vsync.errors import ConfigError, TransportError
from vsync.transport import MAX_FRAME
from vsync.transport.address import Target, parse_address, resolve, resolve_aside
from vsync.transport.curve import FAILURES, Curve, reason
from vsync.transport.dial import EVENTS, NEVER, Dial, read_events
from vsync.transport.links import LinkTiming
from vsync.transport.mesh import BATCH, LINK_MAGIC, Mesh
from vsync.transport.options import TransportConfig, check_addresses
from vsync.types import ClusterConfig

__all__ = ["ZmqTransport"]

_SEND_QUEUE = 512  # frames per peer and link
_RECEIVE_QUEUE = 2048  # frames per connection
_LINK_MS = 1500  # without a sign of life for so long a connection is torn down and made anew
_LINGER_MS = 50  # for the word that this node leaves
_TELL_MS = 1000
_EVIDENCE = "connection reset, then refused"


class ZmqTransport(Mesh):
    """The links of node ``config.node``. One thread uses it at a time.

    Raises ``ConfigError`` for addresses that cannot be, ``TransportError`` if an own one cannot be bound.
    """

    def __init__(self, config: ClusterConfig, options: TransportConfig | None = None) -> None:
        options = options or TransportConfig()
        check_addresses(config, options)
        redundant = any(len(peer.addresses) > 1 for peer in config.peers)
        # A single link is pinged for the status alone: TCP itself tells when it breaks.
        timing = LinkTiming() if redundant else LinkTiming(busy=2_000_000)
        super().__init__(config, ("frames_repeated", "auth_failures"), timing)
        self.packet_bytes = MAX_FRAME  #: TCP has no packets
        self._handlers: dict[int, Callable[[], None]] = {}
        self._retry = NEVER  # when a dial wants to probe
        self._dials: dict[int, list[Dial]] = {}
        self._dead: set[int] = set()  # told of, and not connected since
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._curve = Curve(options.key) if options.key is not None else None
        self._epoll = select.epoll()
        try:
            self._pull = self._listen(options.listen or self.me.addresses)
            self.pollables = (self._pull, self._epoll.fileno())
            for node, remote in self._remotes.items():
                self._dials[node] = []
                for link in range(len(remote.links.links)):
                    target = resolve(remote.peer.addresses[link], SOCK_STREAM)
                    self._dials[node].append(self._dial(node, link, target))
        except BaseException:
            self.close()
            raise

    def receive(self) -> list[bytes]:
        """Up to 32 frames, oldest first per peer and link."""
        for fd, _ in self._epoll.poll(0):
            if (handler := self._handlers.get(fd)) is not None:
                handler()
        frames: list[bytes] = []
        receive, dontwait = self._pull.recv, zmq.DONTWAIT
        try:
            for _ in range(BATCH):
                frame = receive(dontwait)
                if frame[:2] == LINK_MAGIC:
                    self._link_frame(frame)
                else:
                    frames.append(frame)
        except zmq.Again:
            pass
        self.counters["frames_received"] += len(frames)
        self.counters["bytes_received"] += sum(map(len, frames))
        return frames

    def next_deadline(self) -> int | None:
        """See ``Mesh``; also when to look again whether a port refuses."""
        deadline = min(self._deadline, self._retry)
        return deadline if deadline < NEVER else None

    def fire(self, now: int) -> None:
        """See ``Mesh``."""
        super().fire(now)
        if now >= self._retry:
            for dials in self._dials.values():
                for dial in dials:
                    if dial.probe_at <= now:
                        self._probe(dial)
                    dial.redial(_url(dial.address), now)
            self._plan_retry()

    def status(self) -> dict[str, Any]:
        """Name and links."""
        key = self._curve.fingerprint if self._curve is not None else None
        return {"name": "zmq", "key": key, "links": self.link_rows()}

    def close(self) -> None:
        """Close every socket; what is queued has a moment to go. Idempotent."""
        for dials in self._dials.values():
            for dial in dials:
                dial.close()
        self._context.destroy(linger=_LINGER_MS)
        self._epoll.close()

    # ------------------------------------------------------------ details

    def _put(self, node: int, link: int, wire: bytes) -> bool:
        try:
            self._dials[node][link].push.send(wire, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _listen(self, addresses: Sequence[str]) -> zmq.Socket[bytes]:
        pull = self._socket(zmq.PULL)
        if self._curve is not None:
            door, answer = self._curve.guard(self._context, pull), self._curve.answer
            self._watch(_descriptor(door), lambda: answer(door))
            answer(door)
        monitor: zmq.Socket[bytes] = pull.get_monitor_socket(EVENTS)
        self._watch(_descriptor(monitor), lambda: self._knocked(monitor, addresses))
        self._knocked(monitor, addresses)
        for address in addresses:
            _bind(pull, address)
        return pull

    def _knocked(self, monitor: zmq.Socket[bytes], addresses: Sequence[str]) -> None:
        """Somebody connected and was turned away."""
        for kind, value in read_events(monitor):
            if kind in FAILURES and kind != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._refused(f"somebody at {addresses[0]}", kind, value)

    def _refused(self, source: str, kind: int, value: int) -> None:
        self.counters["auth_failures"] += 1
        self._complaints.say("peer_refused", source, reason(kind, value, self._curve), self._clock())

    def tell(self, node: int, address: str, frame: bytes) -> None:
        """See ``Transport.tell``: a connection of its own, which is given a moment."""
        try:
            url = _url(address)
        except ConfigError:
            return
        push = self._socket(zmq.PUSH)
        push.setsockopt(zmq.IMMEDIATE, 0)
        if self._curve is not None:
            self._curve.present(push)
        with contextlib.suppress(zmq.ZMQError):
            push.connect(url)
            push.send(frame, zmq.DONTWAIT)
        push.close(linger=_TELL_MS)

    def _open_links(self, node: int) -> None:
        remote = self._remotes[node]
        self._dials[node] = []
        for link in range(len(remote.links.links)):
            dial = self._dial(node, link, None)
            self._dials[node].append(dial)
            resolve_aside(dial.address, SOCK_STREAM, dial.aim)

    def _close_links(self, node: int) -> None:
        for dial in self._dials.pop(node):
            for fd in (_descriptor(dial.monitor), dial.probing):
                if fd is not None:
                    self._epoll.unregister(fd)
                    del self._handlers[fd]
            dial.close()
            dial.push.disable_monitor()
            dial.monitor.close()
            dial.push.close(linger=_LINGER_MS)
        self._dead.discard(node)
        self._plan_retry()

    def _dial(self, node: int, link: int, target: Target | None) -> Dial:
        address = self._remotes[node].peer.addresses[link]
        push = self._socket(zmq.PUSH)
        if self._curve is not None:
            self._curve.present(push)
        dial = Dial(node, link, address, push, target)
        self._watch(_descriptor(dial.monitor), lambda: self._monitored(dial))
        self._monitored(dial)  # a zmq descriptor does not become readable before it was once found empty
        push.connect(_url(address))
        return dial

    def _watch(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def _monitored(self, dial: Dial) -> None:
        now = self._clock()
        for kind, value in read_events(dial.monitor):
            if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                dial.made()
                self._dead.discard(dial.node)
                self._link_made(dial.node, dial.link, now)
            elif kind == zmq.EVENT_DISCONNECTED and dial.broke(now):
                self._link_broke(dial.node, dial.link, now)
                self._probe(dial)
            elif kind in FAILURES and (self._curve is not None or kind != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
                dial.failed(now)
                self._refused(f"node {dial.node} at {dial.address}", kind, value)
        self._plan_retry()

    def _probe(self, dial: Dial) -> None:
        def probed(fd: int) -> None:
            del self._handlers[fd]
            dial.probed()
            self._judge(dial)
            self._plan_retry()

        dial.probe(lambda fd: self._watch(fd, lambda: probed(fd), select.EPOLLOUT))
        self._judge(dial)

    def _judge(self, dial: Dial) -> None:
        """Nobody listens at this address any more. Only if no other link carries is the process dead."""
        node = dial.node
        if not dial.refused or node in self._dead:
            return
        if not any(d.connected and self._link_up(node, d.link) for d in self._dials[node]):
            self._dead.add(node)
            self._gone.append((node, f"{_EVIDENCE} ({dial.address})"))

    def _plan_retry(self) -> None:
        self._retry = min((dial.deadline for dials in self._dials.values() for dial in dials), default=NEVER)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        options = {
            zmq.LINGER: 0,
            zmq.SNDHWM: _SEND_QUEUE,
            zmq.RCVHWM: _RECEIVE_QUEUE,
            zmq.MAXMSGSIZE: MAX_FRAME,
            zmq.IPV6: 1,
            zmq.IMMEDIATE: 1,
            zmq.RECONNECT_IVL: 10,
            zmq.RECONNECT_IVL_MAX: 200,
            zmq.CONNECT_TIMEOUT: _LINK_MS,
            zmq.HANDSHAKE_IVL: _LINK_MS,
            zmq.HEARTBEAT_IVL: _LINK_MS // 3,
            zmq.HEARTBEAT_TIMEOUT: _LINK_MS,
            zmq.TCP_MAXRT: _LINK_MS,
        }
        for option, value in options.items():
            socket.setsockopt(option, value)
        return socket


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    fd = socket.getsockopt(zmq.FD)
    assert isinstance(fd, int)
    return fd


def _url(address: str) -> str:
    host, port = parse_address(address)
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    try:
        socket.bind(_url(address))
    except zmq.ZMQError as e:
        if e.errno == zmq.EADDRINUSE:
            remedy = "is already in use; stop who listens there (ss -ltnp) or change the node's address"
        else:
            remedy = f"cannot be bound ({e.strerror}); change the node's address to one of this machine"
        raise TransportError(f"the node's own address {address} {remedy}") from e
