"""Evidence that a process is dead: a broken connection *and* a port that refuses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from tests.vsync.transport.ports import free_ports
from vsync.bench.relay import TcpRelay, UdpRelay
from vsync.clock import boot_us
from vsync.transport import Transport
from vsync.transport.dial import TRIES_US
from vsync.transport.options import TransportConfig, open_transport
from vsync.types import ClusterConfig, Peer


def configuration(node: int, *addresses: tuple[int, ...]) -> ClusterConfig:
    """Node n has the loopback ports ``addresses[n - 1]``."""
    peers = tuple(
        Peer(n, f"n{n}", tuple(f"127.0.0.1:{port}" for port in ports)) for n, ports in enumerate(addresses, 1)
    )
    return ClusterConfig("test", node, peers)


def turn(*transports: Transport, milliseconds: int = 5) -> list[list[bytes]]:
    """What the loop does: wait, receive, fire."""
    poller = zmq.Poller()
    for transport in transports:
        for door in transport.pollables:
            poller.register(door, zmq.POLLIN)
    poller.poll(milliseconds)
    frames = [transport.receive() for transport in transports]
    for transport in transports:
        transport.fire(boot_us())
    return frames


def until(condition: Callable[[], object], *transports: Transport) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        turn(*transports)


def connected(transport: Transport, links: int = 1) -> bool:
    return sum(row["state"] == "up" for row in transport.status()["links"]) >= links


@contextlib.contextmanager
def closing(*transports: Transport) -> Iterator[None]:
    try:
        yield
    finally:
        for transport in transports:
            transport.close()


def opened(kind: str, node: int, *addresses: tuple[int, ...], listen: tuple[int, ...] = ()) -> Transport:
    own = tuple(f"127.0.0.1:{port}" for port in listen)
    return open_transport(configuration(node, *addresses), TransportConfig(kind, listen=own), boot_us())


@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_a_dead_peer_is_told_once_with_its_address(kind: str) -> None:
    one, two = free_ports(2)
    a, b = (opened(kind, n, (one,), (two,)) for n in (1, 2))
    with closing(a, b):
        until(lambda: connected(a) and connected(b), a, b)
        assert a.take_gone() == []
        b.close()
        gone: list[tuple[int, str]] = []
        until(lambda: (a.send((2,), b"VSx"), gone.extend(a.take_gone())) and gone, a)
        said = {"zmq": "connection reset, then refused", "udp": "port unreachable, twice"}
        assert gone == [(2, f"{said[kind]} (127.0.0.1:{two})")]
        end = boot_us() + 2 * TRIES_US[-1]
        while boot_us() < end:
            a.send((2,), b"VSx")
            turn(a)
        assert a.take_gone() == []
        with closing(again := opened(kind, 2, (one,), (two,))):  # and of its next life again
            until(lambda: (a.send((2,), b"VSx"), connected(a) and connected(again))[1], a, again)
            assert a.take_gone() == []
        until(lambda: (a.send((2,), b"VSx"), a.take_gone())[1], a)


@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_who_never_was_there_is_not_told(kind: str) -> None:
    one, two = free_ports(2)
    a = opened(kind, 1, (one,), (two,))
    with closing(a):
        end = boot_us() + 300_000
        while boot_us() < end:
            a.send((2,), b"VSx")
            turn(a)
        assert a.take_gone() == []


def test_a_broken_connection_alone_is_no_evidence() -> None:
    """The relay resets every connection, but its port goes on to accept: a switch, not a death."""
    one, two = free_ports(2)
    relay = TcpRelay(two)
    a, b = opened("zmq", 1, (one,), (relay.port,)), opened("zmq", 2, (one,), (two,))
    with closing(a, b), contextlib.closing(relay):
        until(lambda: connected(a), a, b)
        relay.reset()
        until(lambda: not connected(a), a, b)
        until(lambda: connected(a), a, b)
        assert a.take_gone() == []


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_one_address_that_refuses_is_no_evidence_while_another_answers(kind: str, dead: bool) -> None:
    """Two links; the first address refuses. Only when the second does not carry either is the node gone."""
    one, alt, two, alt2 = free_ports(4)
    relay: TcpRelay | UdpRelay = TcpRelay(two) if kind == "zmq" else UdpRelay(two)
    a = opened(kind, 1, (one, alt), (relay.port, alt2))
    b = opened(kind, 2, (one, alt), (relay.port, alt2), listen=(two, alt2))
    with closing(a, b), contextlib.closing(relay):
        until(lambda: connected(a, 2), a, b)
        if dead:
            b.close()
        relay.close()
        gone: list[tuple[int, str]] = []
        end = boot_us() + 3 * TRIES_US[-1]
        while boot_us() < end or (dead and not gone):
            a.send((2,), b"VSx")
            turn(*((a,) if dead else (a, b)))
            gone += a.take_gone()
        assert [node for node, _ in gone] == ([2] if dead else [])
