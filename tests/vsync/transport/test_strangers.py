"""A wrong key, no key, and datagrams from elsewhere: nothing gets through, and both sides say why."""

from __future__ import annotations

import itertools
import socket

import pytest

from tests.vsync.transport.ports import free_ports
from tests.vsync.transport.test_evidence import closing, connected, turn, until
from vsync.errors import TransportError
from vsync.keys import ClusterKey
from vsync.transport import Transport
from vsync.transport.options import TransportConfig, open_transport
from vsync.transport.seal import OVERHEAD, Sealer
from vsync.transport.udp import ENCAPSULATION, UdpTransport
from vsync.types import ClusterConfig, Peer

ANOTHER = ("cluster key is another one", "this cluster's key")  # as zmq and udp say it
KEY, OTHER = ClusterKey(bytes(32)), ClusterKey(bytes(31) + b"\1")


def opened(kind: str, node: int, key: ClusterKey | None, ports: list[int], mtu: int = 0) -> Transport:
    peers = tuple(Peer(n, f"n{n}", (f"127.0.0.1:{port}",)) for n, port in enumerate(ports, 1))
    return open_transport(ClusterConfig("test", node, peers), TransportConfig(kind, key, mtu=mtu), incarnation=1)


@pytest.mark.parametrize(
    ("theirs", "we_say", "they_say"),
    [
        (OTHER, ANOTHER, ANOTHER),
        (None, ("uses no cluster key", "sender has no cluster key"), ("this node has none", "this node has none")),
    ],
)
@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_no_frame_passes_and_both_sides_say_why(
    kind: str,
    theirs: ClusterKey | None,
    we_say: tuple[str, str],
    they_say: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ports = free_ports(2)
    a, b = opened(kind, 1, KEY, ports), opened(kind, 2, theirs, ports)
    said = "peer_refused" if kind == "zmq" else "datagram_refused"
    with closing(a, b):
        for one, words in ((a, we_say), (b, they_say)):
            frames: list[bytes] = []

            def told(one: Transport = one, words: tuple[str, str] = words, frames: list[bytes] = frames) -> bool:
                a.send((2,), b"VSx")
                b.send((1,), b"VSx")
                frames.extend(itertools.chain(*turn(a, b)))
                wanted = words[0] if kind == "zmq" else words[1]
                return one.counters["auth_failures"] > 0 and any(
                    said in r.message and wanted in r.message for r in caplog.records
                )

            until(told)
            assert frames == []
            assert one.counters["frames_received"] == 0
        assert not connected(a)
        assert not connected(b)
        assert len([r for r in caplog.records if said in r.message]) <= 6  # said once, not at every attempt


@pytest.mark.parametrize("theirs", [OTHER, None])
@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_who_comes_back_with_the_right_key_is_let_in(kind: str, theirs: ClusterKey | None) -> None:
    """After a handshake that failed libzmq does not try again by itself."""
    ports = free_ports(2)
    a, b = opened(kind, 1, KEY, ports), opened(kind, 2, theirs, ports)
    with closing(a):
        with closing(b):
            until(lambda: a.counters["auth_failures"] and b.counters["auth_failures"], a, b)
        with closing(b := opened(kind, 2, KEY, ports)):
            until(lambda: connected(a) and connected(b), a, b)


def test_a_sealed_datagram_from_another_address_is_welcome() -> None:
    """A member whose packets take another way (NAT, asymmetric routes); and not one that only says who it is."""
    ports = free_ports(2)
    b = opened("udp", 2, KEY, ports)
    with closing(b), socket.socket(type=socket.SOCK_DGRAM) as elsewhere:
        for key, sealed in ((OTHER, b"VSbad"), (KEY, b"VSgood")):
            elsewhere.sendto(Sealer(key, 1, 5, 0, 2).seal(sealed, b"\0"), ("127.0.0.1", ports[1]))
        frames: list[bytes] = []
        until(lambda: frames.extend(turn(b)[0]) or frames)
        assert frames == [b"VSgood"]
        assert b.counters["auth_failures"] == 1


def test_data_comes_before_tokens() -> None:
    """Whatever order they were sent in: a token that overtakes its data asks for it again."""
    ports = free_ports(2)
    a, b = opened("udp", 1, KEY, ports), opened("udp", 2, KEY, ports)
    with closing(a, b):
        until(lambda: connected(a) and connected(b), a, b)
        token, data = b"VS\1\2token", b"VS\1\1data"
        a.send((2,), token)
        for _ in range(5):
            a.send((2,), data)
        frames: list[bytes] = []
        until(lambda: len(frames) == 6 or frames.extend(b.receive()))
        assert frames == [data] * 5 + [token]


def test_packets_fit_the_path() -> None:
    ports = free_ports(2)
    for mtu, wanted in ((0, 65_507), (1500, 1472), (9000, 8972)):
        a = opened("udp", 1, KEY, ports, mtu)
        with closing(a):
            assert a.packet_bytes == wanted - OVERHEAD - ENCAPSULATION


def test_a_second_process_cannot_have_the_same_port() -> None:
    """Although our own sockets share it: the kernel would give each of the two half of the datagrams."""
    ports = free_ports(2)
    a = opened("udp", 1, KEY, ports)
    with closing(a), pytest.raises(TransportError, match=r"is already in use; stop who .*ss -lunp"):
        opened("udp", 1, KEY, ports)
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", ports[0] + 1))
        with pytest.raises(TransportError, match=rf"\(port {ports[0] + 1}\) is already in use"):
            opened("udp", 1, KEY, ports)


def test_an_unknown_host_name_is_named() -> None:
    peers = (Peer(1, "a", ("127.0.0.1:7000",)), Peer(2, "b", ("no-such-host.invalid:7000",)))
    with pytest.raises(TransportError, match=r"node 2 at no-such-host\.invalid:7000: its host name is unknown"):
        UdpTransport(ClusterConfig("test", 1, peers), TransportConfig("udp", KEY))
