"""Clusters with two links a node, the first of which can be cut for all of them: in silence, as when a switch dies.

Without root its packets go through relays of this process: the address that others have of a node's first link is
a relay's, and the node listens elsewhere (``[node] listen``). With root every link is a network of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from vsync.bench.netns import NetnsCluster
from vsync.bench.relay import TcpRelay, UdpRelay
from vsync.testcluster import LocalCluster

__all__ = ["Cables", "RelayCables", "links_up", "namespaces", "relays"]


class Cables(Protocol):
    """Link 0 of all nodes."""

    def cut(self) -> None:
        """From now on nothing passes, and nobody is told."""

    def heal(self) -> None:
        """What comes now passes."""


class RelayCables:
    """Puts a relay in front of link 0 of every node of a cluster that has not been started."""

    def __init__(self, cluster: LocalCluster, transport: str) -> None:
        relay = TcpRelay if transport == "zmq" else UdpRelay
        self.relays = [relay(int(node.address.rpartition(":")[2])) for node in cluster.nodes]
        for node in cluster.nodes:
            text = node.config.read_text()
            for other, cable in zip(cluster.nodes, self.relays, strict=True):
                text = text.replace(f'"{other.address}"', f'"127.0.0.1:{cable.port}"')
            listen = ", ".join(f'"{address}"' for address in node.addresses)
            node.config.write_text(text.replace("[node]\n", f"[node]\nlisten = [{listen}]\n"))

    def cut(self) -> None:
        """See ``Cables``."""
        for relay in self.relays:
            relay.cut()

    def heal(self) -> None:
        """See ``Cables``."""
        for relay in self.relays:
            relay.heal()

    def close(self) -> None:
        """End: its ports refuse from now on."""
        for relay in self.relays:
            relay.close()


class _Switch:
    """The bridge of link 0 in a network of namespaces."""

    def __init__(self, cluster: NetnsCluster) -> None:
        self._cluster = cluster

    def cut(self) -> None:
        for name in self._cluster.names:
            self._cluster.unplug(name)

    def heal(self) -> None:
        for name in self._cluster.names:
            self._cluster.plug(name)


@contextlib.contextmanager
def relays(transport: str) -> Iterator[tuple[LocalCluster, Cables]]:
    """A cluster that runs, link 0 through relays."""
    cluster = LocalCluster(3, links=2, settings={"transport": transport})
    with contextlib.closing(RelayCables(cluster, transport)) as cables, cluster:
        yield cluster, cables


@contextlib.contextmanager
def namespaces(transport: str) -> Iterator[tuple[LocalCluster, Cables]]:
    """A cluster that runs, each link a bridge. Needs root (``netns.missing``)."""
    with NetnsCluster(links=2, prefix="vslnk", net="10.99", transport=transport) as cluster:
        yield cluster, _Switch(cluster)


def links_up(cluster: LocalCluster, link: int, state: str = "up") -> bool:
    """Whether all nodes have that link to each other in that state."""
    rows = [row for name in cluster.names for row in (cluster.status(name) or {})["transport"]["links"]]
    return all(row["state"] == state for row in rows if row["link"] == link)
