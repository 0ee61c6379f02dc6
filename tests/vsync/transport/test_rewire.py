"""Nodes come, move and go while a transport runs; and who is none of them can be told something, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import zmq

from tests.vsync.transport.ports import free_ports
from vsync.clock import boot_us
from vsync.keys import ClusterKey
from vsync.transport import Transport
from vsync.transport.options import TransportConfig, open_transport
from vsync.types import ClusterConfig, Peer

KEY = ClusterKey(bytes(range(32)))


class Net:
    """Transports of one kind, closed at the end."""

    def __init__(self, kind: str) -> None:
        name, *more = kind.split()
        self.options = TransportConfig(name, KEY if "key" in more else None)
        self.hosts = ["127.0.0.1", "127.0.0.2"] if "links" in more else ["127.0.0.1"]
        self.open: list[Transport] = []

    def peer(self, node: int, port: int) -> Peer:
        return Peer(node, f"n{node}", tuple(f"{host}:{port}" for host in self.hosts))

    def start(self, node: int, peers: tuple[Peer, ...], incarnation: int = 1) -> Transport:
        transport = open_transport(ClusterConfig("test", node, peers), self.options, incarnation)
        self.open.append(transport)
        return transport

    def comes(self, at: Transport, frame: bytes, again: Callable[[], None], seconds: float = 20) -> bool:
        """Whether ``at`` receives the frame, which is sent again and again."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for transport in self.open:
                transport.fire(boot_us())
                if transport is not at:
                    transport.receive()
            poller = zmq.Poller()
            for door in at.pollables:
                poller.register(door, zmq.POLLIN)
            if poller.poll(10) and frame in at.receive():
                return True
            again()
        return False


@pytest.fixture(params=["zmq", "zmq key", "zmq key links", "udp", "udp key", "udp key links"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    net = Net(request.param)
    yield net
    for transport in net.open:
        transport.close()


def test_a_node_comes(net: Net) -> None:
    one, two, three = (net.peer(node, port) for node, port in enumerate(free_ports(3), 1))
    a, b = net.start(1, (one, two)), net.start(2, (one, two))
    a.send((3,), b"nobody")
    c = net.start(3, (one, two, three))
    a.rewire((one, two, three))
    assert net.comes(c, b"welcome", lambda: a.send((3,), b"welcome"))
    assert net.comes(a, b"thanks", lambda: c.send((1,), b"thanks"))
    assert net.comes(b, b"as before", lambda: a.send((2,), b"as before"))
    assert {row["node"] for row in a.status()["links"]} == {2, 3}


def test_a_node_goes(net: Net) -> None:
    one, two, three = (net.peer(node, port) for node, port in enumerate(free_ports(3), 1))
    a, b, c = (net.start(node, (one, two, three)) for node in (1, 2, 3))
    assert net.comes(c, b"hello", lambda: a.send((3,), b"hello"))
    a.rewire((one, two))
    dropped = a.counters["frames_dropped"]
    a.send((3,), b"too late")
    assert a.counters["frames_dropped"] == dropped + 1
    assert {row["node"] for row in a.status()["links"]} == {2}
    assert net.comes(b, b"still here", lambda: a.send((2,), b"still here"))
    assert net.comes(a, b"let me in", lambda: c.send((1,), b"let me in")), "what it says is for the engine to judge"


def test_a_node_moves_and_comes_back(net: Net) -> None:
    """To the same sealer, with the same counter: a nonce must not be used twice."""
    first, second, third = free_ports(3)
    one, two, elsewhere = net.peer(1, first), net.peer(2, second), net.peer(2, third)
    a, b = net.start(1, (one, two)), net.start(2, (one, two))
    assert net.comes(b, b"here", lambda: a.send((2,), b"here"))
    moved = net.start(2, (one, elsewhere), incarnation=2)
    a.rewire((one, elsewhere))
    assert net.comes(moved, b"there", lambda: a.send((2,), b"there"))
    a.rewire((one, two))
    assert net.comes(b, b"here again", lambda: a.send((2,), b"here again"))


def test_a_name_is_looked_up_aside(net: Net) -> None:
    first, second = free_ports(2)
    one, two = net.peer(1, first), net.peer(2, second)
    a, b = net.start(1, (one,)), net.start(2, (one, two))
    named = replace(two, addresses=(f"localhost:{second}", *two.addresses[1:]))
    a.rewire((one, named))
    assert net.comes(b, b"hello", lambda: a.send((2,), b"hello"))


def test_one_that_cannot_be_found_harms_nobody(net: Net) -> None:
    first, second = free_ports(2)
    one, two = net.peer(1, first), net.peer(2, second)
    a, b = net.start(1, (one, two)), net.start(2, (one, two))
    unknown = tuple(f"nobody.invalid:{port}" for port, _ in enumerate(net.hosts, 1))
    a.rewire((one, two, Peer(3, "n3", unknown)))
    assert net.comes(b, b"hello", lambda: a.send((2, 3), b"hello"))


def test_who_is_no_node_is_told(net: Net) -> None:
    one, two = (net.peer(node, port) for node, port in enumerate(free_ports(2), 1))
    a, b = net.start(1, (one,)), net.start(2, (one, two))
    assert net.comes(b, b"not you", lambda: a.tell(2, two.addresses[0], b"not you"))
    for nonsense in ("", "nowhere", "nobody.invalid:7", "127.0.0.1:99999"):
        a.tell(2, nonsense, b"x")
    assert net.comes(b, b"not you", lambda: a.tell(2, two.addresses[0], b"not you"))


def test_closed_in_the_middle(net: Net) -> None:
    """Nothing is left open, whatever came and went."""
    one, two, three = (net.peer(node, port) for node, port in enumerate(free_ports(3), 1))
    a = net.start(1, (one, two))
    for peers in ((one,), (one, three), (one, two, three), (one, two)):
        a.rewire(peers)
        a.send((2, 3), b"x")
        a.fire(boot_us())
        a.receive()
    a.close()
