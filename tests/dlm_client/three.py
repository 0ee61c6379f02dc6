"""Three nodes in this process, on one network in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import dlm
import vsync
from dlm.plugin import service
from tests.vsync.support import until
from vsync.transport.memory import MemoryHub
from vsync.types import ClusterConfig, Peer, Timing

PEERS = tuple(Peer(number, name, (f"127.0.0.1:{number}",)) for number, name in enumerate("abc", 1))
#: A busy machine is not a partition, and yet a cut is noticed soon.
CALM = Timing(600_000, 140_000, 90_000, 30_000, 240_000, 100_000, 1_500_000)


class Three:
    """Nodes a, b and c; ``client`` connects to one of them. Everything ends with the fixture."""

    def __init__(self, timing: Timing = CALM) -> None:
        self.hub = MemoryHub()
        self.nodes: dict[str, vsync.Node] = {}
        self._clients: list[dlm.Client] = []
        self._first = ClusterConfig("test", 1, PEERS, timing=timing)

    def start(self) -> None:
        for peer in PEERS:
            config = replace(self._first, node=peer.node)
            node = vsync.Node(config=config, transport=self.hub.transport(peer.node), services=[service(config)])
            self.nodes[peer.name] = node.start()
        self.wait_members(3)

    def wait_members(self, count: int) -> None:
        """Until the nodes that still run are in one primary view of ``count``."""

        def together() -> bool:
            views = [self.nodes[name].status()["view"] for name in list("abc")[:count]]
            return all(view and view["primary"] and len(view["members"]) == count for view in views)

        until(together, f"a view of {count}")

    def client(self, name: str) -> dlm.Client:
        client = dlm.Client(self.nodes[name])
        self._clients.append(client)
        return client

    def cut_off(self, number: int) -> None:
        """Node ``number`` sees nobody any more, and nobody it."""
        for peer in PEERS:
            if peer.node != number:
                self.hub.cut(number, peer.node)

    def end_clients(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()

    def stop(self) -> None:
        self.end_clients()
        for node in self.nodes.values():
            node.stop(graceful=False)

    @classmethod
    @contextmanager
    def started(cls, timing: Timing = CALM) -> Iterator[Three]:
        three = cls(timing)
        try:
            three.start()
            yield three
        finally:
            three.stop()
