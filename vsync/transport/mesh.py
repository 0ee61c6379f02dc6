"""What the transports with a real network share: peers, redundant links, pings, counters, evidence.

A subclass carries bytes over one link to one peer (``_put``) and hands in what it received (``_link_frame`` for
pings and their answers). Frames of this layer begin with ``VL``, those of the engine with ``VS``.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vsync.clock import boot_us
from vsync.errors import ConfigError
from vsync.logs import get_logger
from vsync.transport import new_counters
from vsync.transport.complaints import Complaints
from vsync.transport.links import Links, LinkState, LinkTiming
from vsync.types import ClusterConfig, Peer
from vsync.wire import cluster_tag

__all__ = ["BATCH", "LINK_MAGIC", "Mesh", "Remote"]

BATCH = 32  #: frames that one ``receive`` returns at most
LINK_MAGIC = b"VL"
RECENT = 64  #: frames kept for a link that turns out to be cut
RECENT_BYTES = 4 << 20

_PING, _PONG, _TOUCH, _TROUBLE = 1, 2, 3, 4  # a touch is not answered; trouble is with that link, to somebody
_FRAME = struct.Struct("!2sBBQIBI")  # magic, version, kind, cluster tag, sender, link, number
_VERSION = 1
_NEVER = 1 << 62
_log = get_logger("vsync.transport")


class Remote:
    """A peer as the mesh knows it."""

    __slots__ = ("links", "node", "peer", "recent", "recent_bytes", "woken")

    def __init__(self, peer: Peer, count: int, now: int, timing: LinkTiming) -> None:
        self.peer = peer
        self.node = peer.node
        self.links = Links(count, now, timing)
        self.woken = False  #: something was sent since the last tick
        self.recent: deque[tuple[int, bytes]] | None = deque() if count > 1 else None
        self.recent_bytes = 0

    def remember(self, wire: bytes, now: int) -> None:
        """Keep it for the case that the link it went over is cut."""
        assert self.recent is not None
        self.recent.append((now, wire))
        self.recent_bytes += len(wire)
        while len(self.recent) > RECENT or self.recent_bytes > RECENT_BYTES:
            self.recent_bytes -= len(self.recent.popleft()[1])


class Mesh(ABC):
    """Base of ``ZmqTransport`` and ``UdpTransport``. One thread uses it at a time."""

    def __init__(
        self,
        config: ClusterConfig,
        counters: Iterable[str],
        timing: LinkTiming,
        clock: Callable[[], int] = boot_us,
    ) -> None:
        me = config.peer(config.node)
        if me is None:
            raise ConfigError(f"node {config.node} is not among the configured nodes")
        self.me = me
        self.counters = new_counters(*counters)
        self._clock = clock
        self._timing = timing
        self._complaints = Complaints()
        self._tag = cluster_tag(config.cluster)
        now = clock()
        self._remotes = {
            peer.node: Remote(peer, min(len(peer.addresses), len(me.addresses)), now, timing)
            for peer in config.peers
            if peer.node != config.node
        }
        self._deadline = now if self._remotes else _NEVER
        self._gone: list[tuple[int, str]] = []
        self._said: dict[tuple[int, int], LinkState] = {}  # states that the log has

    # ------------------------------------------------------------ for the loop

    def rewire(self, peers: Sequence[Peer]) -> None:
        """See ``Transport.rewire``. Nodes whose addresses stay keep their links."""
        wanted = {peer.node: peer for peer in peers if peer.node != self.me.node}
        for node, remote in list(self._remotes.items()):
            peer = wanted.get(node)
            if peer is not None and peer.addresses == remote.peer.addresses:
                remote.peer = peer
                continue
            self._close_links(node)
            del self._remotes[node]
            for link in remote.links.links:
                self._said.pop((node, link.index), None)
        now = self._clock()
        for node, peer in sorted(wanted.items()):
            if node not in self._remotes:
                count = min(len(peer.addresses), len(self.me.addresses))
                self._remotes[node] = Remote(peer, count, now, self._timing)
                self._open_links(node)
        self._plan()

    def send(self, to: Sequence[int], frame: bytes) -> None:
        """Send ``frame`` to each of these nodes over the link in use, or drop it; never blocks."""
        counters = self.counters
        for node in to:
            remote = self._remotes.get(node)
            if remote is None:
                counters["frames_dropped"] += 1
                continue
            if not remote.woken:
                self._wake(remote)
            wire = self._wrap(node, frame)
            sent = False
            for link in remote.links.use:
                sent = self._put(node, link, wire) or sent
            if remote.recent is not None:
                remote.remember(wire, self._clock())
            if sent:
                counters["frames_sent"] += 1
                counters["bytes_sent"] += len(frame)
            else:
                counters["frames_dropped"] += 1

    def take_gone(self) -> list[tuple[int, str]]:
        """See ``Transport.take_gone``."""
        if not self._gone:
            return self._gone
        gone, self._gone = self._gone, []
        return gone

    def next_deadline(self) -> int | None:
        """When the next ping or judgement is due."""
        return self._deadline if self._deadline < _NEVER else None

    def fire(self, now: int) -> None:
        """Send pings, and judge the links by the answers that are missing."""
        if now < self._deadline:
            return
        for remote in self._remotes.values():
            if now >= remote.links.deadline:
                self._tick(remote, now)
        self._plan()

    def link_rows(self) -> list[dict[str, Any]]:
        """One row a peer and link, for the status."""
        return [
            {"node": remote.node, "name": remote.peer.name, "address": remote.peer.addresses[row["link"]], **row}
            for remote in self._remotes.values()
            for row in remote.links.rows()
        ]

    # ------------------------------------------------------------ for the subclass

    def _wrap(self, node: int, frame: bytes) -> bytes:
        """``frame`` as it goes over the wire to ``node``, whatever the link."""
        return frame

    @abstractmethod
    def _open_links(self, node: int) -> None:
        """To a node that has come; must not block."""

    @abstractmethod
    def _close_links(self, node: int) -> None:
        """To a node that has gone, or has moved."""

    @abstractmethod
    def _put(self, node: int, link: int, wire: bytes) -> bool:
        """Send over one link; false if it cannot be, now."""

    def _link_frame(self, frame: bytes) -> None:
        """A ping or an answer arrived. Anything odd is ignored."""
        if len(frame) != _FRAME.size:
            return
        _, version, kind, tag, node, link, number = _FRAME.unpack(frame)
        remote = self._remotes.get(node)
        if remote is None or tag != self._tag or version != _VERSION or link >= len(remote.links.links):
            return
        if kind == _PING:
            self._put(node, link, self._wrap(node, self._frame(_PONG, link, number)))
        elif kind == _TROUBLE:
            self._suspect(link)
        elif kind == _PONG:
            remote.links.pong(link, number, self._clock())
            self._moved(remote)
            self._plan()

    def _link_made(self, node: int, link: int, now: int) -> None:
        self._remotes[node].links.made(link, now)
        self._plan()

    def _link_broke(self, node: int, link: int, now: int) -> None:
        remote = self._remotes[node]
        remote.links.broke(link, now)
        self._moved(remote)
        self._plan()

    def _link_up(self, node: int, link: int) -> bool:
        """Whether the link's pings are answered."""
        return self._remotes[node].links.links[link].state is not LinkState.DOWN

    def _ask(self, node: int, link: int) -> None:
        """Ping now, out of turn; the answer is not waited for."""
        self._put(node, link, self._wrap(node, self._frame(_PING, link, 0)))

    # ------------------------------------------------------------ details

    def _frame(self, kind: int, link: int, number: int) -> bytes:
        return _FRAME.pack(LINK_MAGIC, _VERSION, kind, self._tag, self.me.node, link, number)

    def _tick(self, remote: Remote, now: int) -> None:
        remote.woken = False
        pings = remote.links.tick(now)
        for link, number in pings:
            if not self._put(remote.node, link, self._wrap(remote.node, self._frame(_PING, link, number))):
                remote.links.unsent(link, number)
        if remote.links.touch(now) and not pings:
            for link in remote.links.use:
                self._put(remote.node, link, self._wrap(remote.node, self._frame(_TOUCH, link, 0)))
        self._moved(remote)

    def _suspect(self, link: int) -> None:
        """It fails to somebody: perhaps a whole network is down."""
        now = self._clock()
        for remote in self._remotes.values():
            remote.links.suspect(link, now)
        self._deadline = min(self._deadline, now)

    def _wake(self, remote: Remote) -> None:
        remote.woken = True
        remote.links.busy(self._clock())
        self._deadline = min(self._deadline, remote.links.deadline)

    def _plan(self) -> None:
        self._deadline = min((r.links.deadline for r in self._remotes.values()), default=_NEVER)

    def _moved(self, remote: Remote) -> None:
        """Tell of links that changed; what may have been lost on the former ones goes over the new."""
        doubt = remote.links.take_doubt()
        if doubt is not None and remote.recent is not None:
            new, since = doubt
            for sent, wire in remote.recent:
                if sent >= since:
                    self.counters["frames_repeated"] += 1
                    for index in new:
                        self._put(remote.node, index, wire)
        for index in remote.links.take_fallen():
            self._suspect(index)
            for other in self._remotes.values():
                for use in other.links.use:
                    self._put(other.node, use, self._wrap(other.node, self._frame(_TROUBLE, index, 0)))
        for link in remote.links.links:
            key = (remote.node, link.index)
            if link.state is LinkState.SUSPECT or self._said.get(key, LinkState.DOWN) is link.state:
                continue
            self._said[key] = link.state
            _log.info(
                f"link_{link.state.value}",
                node=remote.node,
                link=link.index,
                address=remote.peer.addresses[link.index],
                use=list(remote.links.use),
            )
