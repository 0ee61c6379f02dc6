"""Nodes in this process, over every network: they form one view and agree on what they are told of it."""

from __future__ import annotations

import contextlib

import pytest

import vsync
from tests.vsync.support import until
from tests.vsync.transport.ports import free_ports


@pytest.mark.parametrize("links", [1, 8])
@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_three_nodes_with_a_key_form_one_view(kind: str, links: int) -> None:
    ports = free_ports(3)
    peers = tuple(
        vsync.Peer(n, f"n{n}", tuple(f"127.0.0.{link}:{port}" for link in range(1, links + 1)))
        for n, port in enumerate(ports, 1)
    )
    options = vsync.TransportConfig(kind, vsync.ClusterKey.generate())
    with contextlib.ExitStack() as stack:
        configs = [vsync.ClusterConfig("x", n, peers) for n in (1, 2, 3)]
        nodes = [stack.enter_context(vsync.Node(config=c, transport=options, services=[])) for c in configs]
        for node in nodes:
            until(lambda node=node: len((node.status()["view"] or {"members": []})["members"]) == 3)
            until(lambda node=node: all(row["state"] == "up" for row in node.status()["transport"]["links"]))
        status = nodes[0].status()["transport"]
        assert status["name"] == kind
        assert options.key is not None
        assert status["key"] == options.key.fingerprint
        assert len(status["links"]) == 2 * links
        assert sum(row["used"] for row in status["links"]) == 2
