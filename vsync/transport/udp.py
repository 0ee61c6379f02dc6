"""Datagrams: one hop costs a fraction of what TCP through libzmq costs (design §7).

Every peer and link has two sockets, connected, so that the kernel tells when nobody listens there any more:
one for data at the configured port, one for tokens at the next port. The receiver empties the data sockets before
it looks at a token: a token that overtook the data it speaks of would ask for all of it again. Two further
sockets for each link take what comes from other addresses – a member whose packets take another way is welcome if
its datagrams are authentic.

Nothing is acknowledged or sent again here; what is lost, the ring repairs. Packets are as large as the path takes
in one piece (IP_MTU of the connected socket), frames that are larger – few are – the kernel cuts.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import select
import socket
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from vsync.errors import ConfigError, TransportError
from vsync.logs import get_logger
from vsync.transport.address import Target, parse_address, resolve, resolve_aside
from vsync.transport.links import LinkTiming
from vsync.transport.mesh import BATCH, LINK_MAGIC, Mesh
from vsync.transport.options import TransportConfig, check_addresses
from vsync.transport.seal import LANE_AT, OVERHEAD, AuthenticationFailed, Opener, Sealer, new_salt
from vsync.types import ClusterConfig, Peer
from vsync.wire import FrameType

__all__ = ["ENCAPSULATION", "UdpTransport"]

ENCAPSULATION = 128  #: what the engine adds to a packet's payload, at most
MAX_DATAGRAM = 65_507
BUFFER = 8 << 20  #: of a data socket, if the system grants it
ENOUGH = 1 << 20  #: a smaller one is complained of
DEFAULT_MTU = 1500
TOUCH_US = 95_000  #: a peer that is sent to is sent something so often: if it has died, its port refuses
MIN_PAYLOAD = 400
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}
_MTU_OPTION = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_DATA, _TOKEN = b"\0", b"\1"
_LANES = (0, 1)
_KIND_AT = 3  # in the engine's frames
_TOKENS = (bytes([FrameType.TOKEN]), bytes([FrameType.COMMIT]))
_LOCAL = (errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE)  # says nothing about the way to the peer
_AGAIN_US = 1_000_000  # a way to a peer is looked for so often
_EVIDENCE = "port unreachable, twice"

_log = get_logger("vsync.transport")


class _Path:
    """One link to one peer: whether anybody is at its end."""

    __slots__ = ("heard", "refused")

    def __init__(self) -> None:
        self.heard = False  # an authentic datagram came since it was last given up
        self.refused = 0  # times in a row, with nothing heard in between


class _Line:
    """One socket, for data or for tokens: to one peer, or for what comes from anywhere."""

    __slots__ = ("address", "lane", "link", "node", "path", "socket", "target", "tried")

    def __init__(self, lane: int, link: int, address: str, node: int, path: _Path) -> None:
        self.lane = lane
        self.link = link
        self.address = address  # the peer's, or the own one
        self.node = node  # 0: anybody
        self.path = path
        self.socket: socket.socket | None = None  # none: there is no way to the peer yet
        self.target: Target | None = None
        self.tried = 0  # when a way was last looked for


_LANE = attrgetter("lane")


class UdpTransport(Mesh):
    """The links of node ``config.node`` in life ``incarnation``. One thread uses it at a time.

    Raises ``ConfigError`` for addresses that cannot be, ``TransportError`` if an own one cannot be bound or a
    peer's host name is unknown.
    """

    def __init__(self, config: ClusterConfig, options: TransportConfig | None = None, incarnation: int = 0) -> None:
        options = options or TransportConfig(kind="udp")
        check_addresses(config, options)
        redundant = any(len(peer.addresses) > 1 for peer in config.peers)
        timing = LinkTiming(touch=TOUCH_US) if redundant else LinkTiming(busy=1_000_000, touch=TOUCH_US)
        super().__init__(config, ("frames_repeated", "auth_failures", "frames_duplicate"), timing)
        self._options = options
        self._life = config.node, incarnation, new_salt()
        #: Kept for ever: with a new one for the same node the counter, which is the nonce, would begin anew.
        self._sealers: dict[int, Sealer] = {}
        self._opener = Opener(options.key, config.node, frozenset(self._remotes))
        self._buffer = bytearray(1 << 16)
        self._view = memoryview(self._buffer)
        self._lines: dict[int, _Line] = {}  # by descriptor
        self._out: dict[tuple[int, int], tuple[_Line, _Line]] = {}  # (node, link): data, token
        self._poll = select.epoll()
        self._open = True
        self._room = MAX_DATAGRAM
        self._own: list[Target] = []  # where this node listens, by link
        try:
            for link, address in enumerate(options.listen or self.me.addresses):
                for lane in _LANES:
                    self._listen(_Line(lane, link, address, 0, _Path()))
            for node, remote in self._remotes.items():
                for link in range(len(remote.links.links)):
                    address = remote.peer.addresses[link]
                    target = resolve(address, socket.SOCK_DGRAM)
                    if target is None:
                        raise TransportError(f"node {node} at {address}: its host name is unknown; correct it")
                    self._connect(self._line_pair(node, link, address), target)
        except BaseException:
            self.close()
            raise
        self.pollables = (self._poll.fileno(),)

    @property
    def packet_bytes(self) -> int:
        """What fits in one packet of the path to every peer, over every link, as it was when this node started."""
        return max(MIN_PAYLOAD, self._room - OVERHEAD - ENCAPSULATION)

    def rewire(self, peers: Sequence[Peer]) -> None:
        """See ``Mesh``."""
        super().rewire(peers)
        self._opener.admit(frozenset(self._remotes))

    def tell(self, node: int, address: str, frame: bytes) -> None:
        """See ``Transport.tell``: from the own port."""
        door = next((line.socket for line in self._lines.values() if not line.node and not line.lane), None)
        try:
            host, _ = parse_address(address)
            ipaddress.ip_address(host)
            target = resolve(address, socket.SOCK_DGRAM)
        except (ConfigError, ValueError):
            return  # a host name would have to be looked up
        if door is not None and target is not None:
            with contextlib.suppress(OSError):
                door.sendto(self._wrap(node, frame), target[1])

    def receive(self) -> list[bytes]:
        """Up to 32 frames, oldest first per peer and link; tokens after all data."""
        frames: list[bytes] = []
        lines = [self._lines[fd] for fd, _ in self._poll.poll(0)]
        if len(lines) > 1:
            lines.sort(key=_LANE)
        for line in lines:
            if len(frames) >= BATCH:
                break
            self._drain(line, frames)
        self.counters["frames_received"] += len(frames)
        self.counters["bytes_received"] += sum(map(len, frames))
        return frames

    def status(self) -> dict[str, Any]:
        """Name, key, size of packets and links."""
        key = self._options.key.fingerprint if self._options.key is not None else None
        return {"name": "udp", "key": key, "packet_bytes": self.packet_bytes, "links": self.link_rows()}

    def close(self) -> None:
        """Close every socket. Idempotent."""
        if not self._open:
            return
        self._open = False
        for line in self._lines.values():
            if line.socket is not None:
                line.socket.close()
        self._poll.close()

    # ------------------------------------------------------------ sending

    def _wrap(self, node: int, frame: bytes) -> bytes:
        lane = _TOKEN if frame[_KIND_AT : _KIND_AT + 1] in _TOKENS and frame[:2] != LINK_MAGIC else _DATA
        if node not in self._sealers:
            self._sealers[node] = Sealer(self._options.key, *self._life, node)
        return self._sealers[node].seal(frame, lane)

    def _put(self, node: int, link: int, wire: bytes) -> bool:
        line = self._out[node, link][wire[LANE_AT]]
        if line.socket is None and not self._reach(line):
            return False
        assert line.socket is not None
        for _ in range(2):
            try:
                line.socket.send(wire)
                return True
            except ConnectionRefusedError:  # an earlier one was; this one was not sent
                self._was_refused(line)
            except OSError as e:
                if e.errno not in _LOCAL:
                    self._link_broke(node, link, self._clock())
                return False
        return False

    def _was_refused(self, line: _Line) -> None:
        """Nobody listens there, says the peer's kernel, or somebody who forges what it would say.

        So it must say so again when asked again, with no authentic word from the peer in between. The process
        is dead only if all links refuse or do not carry.
        """
        path = line.path
        if not path.heard:
            return
        path.refused += 1
        links = self._remotes[line.node].links
        if path.refused == 1:
            for link in links.links:
                self._ask(line.node, link.index)
            return
        if path.refused == 2:
            self._link_broke(line.node, line.link, self._clock())
        if not links.alive and path.heard:
            for link in links.links:
                self._out[line.node, link.index][0].path.heard = False  # said once
            self._gone.append((line.node, f"{_EVIDENCE} ({line.address})"))

    # ------------------------------------------------------------ receiving

    def _drain(self, line: _Line, frames: list[bytes]) -> None:
        assert line.socket is not None
        receive, buffer, view, opener = line.socket.recvfrom_into, self._buffer, self._view, self._opener
        while len(frames) < BATCH:
            try:
                size, source = receive(buffer)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._was_refused(line)
                continue
            except OSError:  # unreachable, and the like: the pings will tell
                continue
            try:
                opened = opener.open(view[:size])
            except AuthenticationFailed as e:
                self.counters["auth_failures"] += 1
                self._complaints.say("datagram_refused", f"{source[0]}:{source[1]}", str(e), self._clock())
                continue
            if opened is None:
                self.counters["frames_duplicate"] += 1
                continue
            node, frame = opened
            if (node, line.link) in self._out:
                path = self._out[node, line.link][0].path
                path.heard = True
                path.refused = 0
            if frame[:2] == LINK_MAGIC:
                self._link_frame(frame)
            else:
                frames.append(frame)

    # ------------------------------------------------------------ sockets

    def _listen(self, line: _Line) -> None:
        """The own port, for strangers; and so that nobody else can have it."""
        host, port = parse_address(line.address)
        target = resolve(line.address, socket.SOCK_DGRAM)
        if target is None:
            raise TransportError(f"the node's own address {line.address}: host name {host!r} is unknown")
        if line.lane == 0:
            self._own.append(target)
        own = _socket(target[0], line.lane)
        try:
            own.bind(_lane(target, line.lane))
        except OSError as e:
            own.close()
            shown = f"{line.address} (port {port + line.lane})"
            if e.errno == errno.EADDRINUSE:
                remedy = "is already in use; stop who listens there (ss -lunp) or change the node's address"
            else:
                remedy = f"cannot be bound ({e.strerror}); change the node's address to one of this machine"
            raise TransportError(f"the node's own address {shown} {remedy}") from e
        # From now on our own sockets, and only those who ask for it, may share the port.
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        granted = own.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if line.lane == 0 and line.link == 0 and granted < 2 * ENOUGH:  # the kernel says twice what it gave
            _log.warning("udp_buffer_small", bytes=granted // 2, remedy=f"sysctl net.core.rmem_max={BUFFER}")
        self._adopt(line, own)

    def _open_links(self, node: int) -> None:
        for link in range(len(self._remotes[node].links.links)):
            address = self._remotes[node].peer.addresses[link]
            lines = self._line_pair(node, link, address)
            resolve_aside(address, socket.SOCK_DGRAM, partial(_aim, lines))

    def _close_links(self, node: int) -> None:
        for key in [key for key in self._out if key[0] == node]:
            for line in self._out.pop(key):
                if line.socket is not None:
                    del self._lines[line.socket.fileno()]
                    line.socket.close()  # which takes it out of its epoll set

    def _line_pair(self, node: int, link: int, address: str) -> tuple[_Line, _Line]:
        path = _Path()
        lines = (_Line(0, link, address, node, path), _Line(1, link, address, node, path))
        self._out[node, link] = lines
        return lines

    def _connect(self, lines: tuple[_Line, _Line], target: Target) -> None:
        _aim(lines, target)
        for line in lines:
            if self._reach(line):
                self._measure(line)
            else:
                _log.warning("no_route", node=line.node, link=line.link, address=line.address)
                self._room = min(self._room, DEFAULT_MTU - _HEADERS[socket.AF_INET6])

    def _reach(self, line: _Line) -> bool:
        """Open the socket of ``line``, if there is a way to the peer."""
        now = self._clock()
        own, target = self._own[line.link], line.target
        if target is None or (line.tried and now - line.tried < _AGAIN_US):
            return False
        line.tried = now
        sock = _socket(own[0], line.lane)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(_lane(own, line.lane))
            sock.connect(_lane(target, line.lane))
        except OSError:
            sock.close()
            return False
        self._adopt(line, sock)
        return True

    def _measure(self, line: _Line) -> None:
        """How much one packet of this path carries."""
        assert line.socket is not None
        family = line.socket.family
        try:
            mtu = line.socket.getsockopt(*_MTU_OPTION[family])
        except OSError:
            mtu = DEFAULT_MTU
        if self._options.mtu:
            mtu = min(mtu, self._options.mtu)
        self._room = min(self._room, mtu - _HEADERS[family])

    def _adopt(self, line: _Line, sock: socket.socket) -> None:
        line.socket = sock
        self._lines[sock.fileno()] = line
        self._poll.register(sock.fileno(), select.EPOLLIN)


def _aim(lines: tuple[_Line, _Line], target: Target | None) -> None:
    """The host name has been looked up, perhaps by another thread."""
    for line in lines:
        line.target = target
    if target is None:
        _log.warning("host_unknown", node=lines[0].node, address=lines[0].address, remedy="correct it")


def _lane(target: Target, lane: int) -> tuple[Any, ...]:
    """Tokens take the next port."""
    host, port, *more = target[1]
    return (host, port + lane, *more)


def _socket(family: socket.AddressFamily, lane: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if lane == 0:
        for force, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, BUFFER)  # beyond the system's limit, if we may
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
    return sock
