"""Both transports: frames arrive, nothing blocks, what cannot be delivered is dropped and counted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from tests.vsync.transport.ports import free_ports
from vsync.clock import boot_us
from vsync.errors import ConfigError, TransportError
from vsync.keys import ClusterKey
from vsync.transport import Transport
from vsync.transport.memory import MemoryHub
from vsync.transport.options import TransportConfig, open_transport
from vsync.transport.udp import ENCAPSULATION, UdpTransport
from vsync.transport.zmq import ZmqTransport
from vsync.types import ClusterConfig, Peer


def configuration(node: int, ports: list[int], host: str = "127.0.0.1", links: int = 1) -> ClusterConfig:
    hosts = [host] if links == 1 else [f"127.0.0.{link}" for link in range(1, links + 1)]
    peers = tuple(Peer(n, f"n{n}", tuple(f"{h}:{port}" for h in hosts)) for n, port in enumerate(ports, 1))
    return ClusterConfig("test", node, peers)


def wait(transport: Transport, milliseconds: int) -> bool:
    poller = zmq.Poller()
    for door in transport.pollables:
        poller.register(door, zmq.POLLIN)
    return bool(poller.poll(milliseconds))


def receive(transport: Transport, count: int, again: Callable[[], None] = lambda: None) -> list[bytes]:
    """``count`` frames; ``again`` is called while nothing comes (frames may be lost)."""
    frames: list[bytes] = []
    end = time.monotonic() + 20
    while len(frames) < count:
        transport.fire(boot_us())
        assert time.monotonic() < end, f"only {len(frames)} of {count} frames"
        if wait(transport, 20):
            frames += transport.receive()
        else:
            again()
    return frames


NETWORKS = ["zmq", "zmq key", "zmq key links", "udp", "udp key", "udp key links"]
KEY = ClusterKey(bytes(range(32)))


def network(how: str, node: int, ports: list[int]) -> Transport:
    kind, *more = how.split()
    config = configuration(node, ports, links=3 if "links" in more else 1)
    return open_transport(config, TransportConfig(kind, KEY if "key" in more else None), incarnation=1)


def settle(*transports: Transport) -> None:
    """Until every link is known to be up: before that, frames go over all of them."""
    end = time.monotonic() + 20
    while any(row["state"] != "up" for t in transports for row in t.status()["links"]):
        assert time.monotonic() < end
        for t in transports:
            assert t.receive() == []
            t.fire(boot_us())
            wait(t, 2)


@pytest.fixture(params=["memory", *NETWORKS])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Transport, Transport]]:
    a: Transport
    b: Transport
    if request.param == "memory":
        hub = MemoryHub()
        a, b = hub.transport(1), hub.transport(2)
    else:
        ports = free_ports(2)
        a, b = (network(request.param, node, ports) for node in (1, 2))
        settle(a, b)
    yield a, b
    a.close()
    b.close()


def test_frames_arrive_in_both_directions(pair: tuple[Transport, Transport]) -> None:
    a, b = pair
    assert b"hello" in receive(b, 1, lambda: a.send((2,), b"hello"))
    for n in range(100):
        a.send((2,), b"%d" % n)
    frames = [f for f in receive(b, 100) if f != b"hello"]
    while len(frames) < 100:
        frames += [f for f in receive(b, 1) if f != b"hello"]
    assert frames == [b"%d" % n for n in range(100)]
    assert b"back" in receive(a, 1, lambda: b.send((1,), b"back"))
    assert b.counters["frames_received"] >= 101


def test_a_large_frame_arrives_whole(pair: tuple[Transport, Transport]) -> None:
    a, b = pair
    frame = bytes(range(256)) * (4096 if not isinstance(a, UdpTransport) else 250)
    assert receive(b, 1, lambda: a.send((2,), frame))[0] == frame
    assert len(frame) >= min(a.packet_bytes, 1 << 20) * 0.9


def test_the_largest_packet_fits(pair: tuple[Transport, Transport]) -> None:
    """With what the engine adds to its payload."""
    a, b = pair
    frame = bytes(min(a.packet_bytes, 1 << 20) + ENCAPSULATION)
    assert receive(b, 1, lambda: a.send((2,), frame))[0] == frame


def test_nothing_to_receive(pair: tuple[Transport, Transport]) -> None:
    a, _ = pair
    assert a.receive() == []
    assert not wait(a, 0)


def test_a_batch_is_bounded_and_the_rest_stays_pollable(pair: tuple[Transport, Transport]) -> None:
    a, b = pair
    receive(b, 1, lambda: a.send((2,), b"first"))
    for _ in range(200):
        a.send((2,), b"x")
    got = 0
    while got < 200:
        assert wait(b, 20_000)
        batch = b.receive()
        assert len(batch) <= 32
        got += batch.count(b"x")


def test_sending_to_nobody_or_to_a_full_queue_drops_and_counts(pair: tuple[Transport, Transport]) -> None:
    a, b = pair
    a.send((9,), b"x")
    assert a.counters["frames_dropped"] == 1
    receive(b, 1, lambda: a.send((2,), b"first"))
    before = a.counters["frames_dropped"]
    for _ in range(20_000):  # nobody receives; more than all buffers in between can hold
        a.send((2,), b"x" * 4000)
        if a.counters["frames_dropped"] > before:
            break
    # Datagrams are dropped by the receiver's kernel, which does not tell.
    assert a.counters["frames_dropped"] > before or isinstance(a, UdpTransport)


def test_close_twice(pair: tuple[Transport, Transport]) -> None:
    pair[0].close()
    pair[0].close()
    pair[1].send((1,), b"x")


def test_a_port_in_use_is_named_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = ClusterConfig("test", 1, (Peer(1, "a", (address,)),))
        with pytest.raises(TransportError, match=f"{address} is already in use; stop .* or change"):
            ZmqTransport(config)


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    config = ClusterConfig("test", 1, (Peer(1, "a", ("[::1%nosuchlink]:7000",)),))
    with pytest.raises((TransportError, ConfigError)):
        ZmqTransport(config)


@pytest.mark.parametrize("host", ["10.1.2.3", "0.0.0.0", "example.org"])
def test_without_a_key_only_loopback(host: str) -> None:
    with pytest.raises(ConfigError, match="without a key only loopback addresses are accepted"):
        ZmqTransport(configuration(1, [7000, 7001], host))


def test_bytes_that_are_no_zmtp_do_no_harm() -> None:
    ports = free_ports(2)
    a, b = ZmqTransport(configuration(1, ports)), ZmqTransport(configuration(2, ports))
    try:
        for nonsense in (b"GET / HTTP/1.0\r\n\r\n", bytes(1000), b"\xff" * 1000):
            with socket.create_connection(("127.0.0.1", ports[1])) as s:
                s.sendall(nonsense)
        assert set(receive(b, 1, lambda: a.send((2,), b"hello"))) == {b"hello"}
    finally:
        a.close()
        b.close()


@pytest.mark.parametrize("how", NETWORKS)
def test_a_restarted_peer_is_found_again(how: str) -> None:
    ports = free_ports(2)
    a, b = network(how, 1, ports), network(how, 2, ports)
    receive(b, 1, lambda: a.send((2,), b"x"))
    b.close()
    b = network(how, 2, ports)
    try:
        assert receive(b, 1, lambda: a.send((2,), b"y"))
    finally:
        a.close()
        b.close()


def test_a_cut_of_the_memory_network() -> None:
    hub = MemoryHub()
    a, b = hub.transport(1), hub.transport(2)
    hub.cut(1, 2, both=False)
    a.send((2,), b"lost")
    b.send((1,), b"arrives")
    assert (a.receive(), b.receive()) == ([b"arrives"], [])
    hub.heal()
    a.send((2,), b"now")
    assert b.receive() == [b"now"]
