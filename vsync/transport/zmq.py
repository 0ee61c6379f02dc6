"""ZeroMQ over TCP: a full mesh of one-way links.

One PULL socket bound at the node's own address, one PUSH socket connected to each peer. libzmq connects,
retries and frames; what it does beyond that is turned off, because the engine wants fresh frames or none:
queues are short, nothing is queued for an absent peer (IMMEDIATE), nothing lingers. What an old connection
still holds is judged by the engine by ring id and incarnation. A link through which nothing comes for a
while is torn down (heartbeats, TCP_MAXRT), so that a healed network is not held up by TCP's retransmission
back-off.

``zmq.asyncio`` is not used: it costs five to seven times as much per hop (design §6).
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from vsync.errors import ConfigError, TransportError
from vsync.transport import MAX_FRAME
from vsync.transport.address import check_loopback, parse_address
from vsync.types import ClusterConfig

__all__ = ["ZmqTransport"]

_SEND_QUEUE = 512  # frames per peer
_RECEIVE_QUEUE = 2048  # frames per connection
_BATCH = 32
_LINK_MS = 1500  # without a sign of life for so long a link is torn down and made anew


class ZmqTransport:
    """The links of node ``config.node``. One thread uses it at a time.

    Raises ``ConfigError`` for an address that is not loopback, ``TransportError`` if the own one cannot be
    bound.
    """

    def __init__(self, config: ClusterConfig) -> None:
        check_loopback(config.peers)
        me = config.peer(config.node)
        if me is None:
            raise ConfigError(f"node {config.node} is not among the configured nodes")
        self.counters = dict.fromkeys(
            ("frames_sent", "frames_received", "frames_dropped", "bytes_sent", "bytes_received"), 0
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._pull = self._socket(zmq.PULL)
        self._peers: dict[int, zmq.Socket[bytes]] = {}
        try:
            _bind(self._pull, me.addresses[0])
            for peer in config.peers:
                if peer.node != config.node:
                    self._peers[peer.node] = self._socket(zmq.PUSH)
                    self._peers[peer.node].connect(_url(peer.addresses[0]))
        except BaseException:
            self.close()
            raise

    @property
    def pollable(self) -> zmq.Socket[bytes]:
        """The PULL socket."""
        return self._pull

    def send(self, to: Sequence[int], frame: bytes) -> None:
        """Queue ``frame`` for each of these nodes, or drop it (full queue, no connection, unknown node)."""
        counters = self.counters
        for node in to:
            socket = self._peers.get(node)
            try:
                if socket is None:
                    raise zmq.Again
                socket.send(frame, zmq.DONTWAIT)
            except zmq.Again:
                counters["frames_dropped"] += 1
            else:
                counters["frames_sent"] += 1
                counters["bytes_sent"] += len(frame)

    def receive(self) -> list[bytes]:
        """Up to 32 frames, oldest first per peer."""
        frames: list[bytes] = []
        try:
            while len(frames) < _BATCH:
                frames.append(self._pull.recv(zmq.DONTWAIT))
        except zmq.Again:
            pass
        self.counters["frames_received"] += len(frames)
        self.counters["bytes_received"] += sum(map(len, frames))
        return frames

    def close(self) -> None:
        """Close every socket, dropping what is queued. Idempotent."""
        self._context.destroy(linger=0)

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
