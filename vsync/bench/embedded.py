"""Rings of this machine's loopback whose nodes are embedded in programs, a process each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from vsync.node import Node
from vsync.service import Service
from vsync.transport.options import TransportConfig
from vsync.types import ClusterConfig, Peer

__all__ = ["configs", "joined"]


def configs(ports: Iterable[int]) -> list[ClusterConfig]:
    """What each node of such a ring has to know: one node for each port."""
    peers = tuple(Peer(n, f"n{n}", (f"127.0.0.1:{port}",)) for n, port in enumerate(ports, 1))
    return [ClusterConfig("bench", peer.node, peers) for peer in peers]


@contextlib.contextmanager
def joined(
    config: ClusterConfig,
    transport: TransportConfig,
    services: Sequence[Service] | None = None,
    process: bool = False,
) -> Iterator[Node]:
    """A node of this program, when all nodes are in its view; arguments as for ``vsync.Node``."""
    with Node(config=config, transport=transport, services=services, process=process) as node:
        for view in node.views():
            if len(view.members) == len(config.peers) and not view.transitional:
                break
        yield node
