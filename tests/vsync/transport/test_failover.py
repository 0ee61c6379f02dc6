"""One of two links is cut: frames go on over the other, within a bound, on both transports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.vsync.transport.ports import free_ports
from tests.vsync.transport.test_evidence import closing, turn, until
from vsync.bench.relay import TcpRelay, UdpRelay
from vsync.keys import ClusterKey
from vsync.transport import Transport
from vsync.transport.links import LinkTiming
from vsync.transport.options import TransportConfig, open_transport
from vsync.types import ClusterConfig, Peer

KEY = ClusterKey(bytes(32))
Relay = TcpRelay | UdpRelay


class Pair:
    """Nodes 1 and 2, two links each; link 0 of both goes through relays."""

    def __init__(self, kind: str) -> None:
        relay = TcpRelay if kind == "zmq" else UdpRelay
        ports = free_ports(4)
        self.relays: list[Relay] = [relay(port) for port in ports[:2]]
        seen = [(r.port, port) for r, port in zip(self.relays, ports[2:], strict=True)]
        peers = tuple(
            Peer(n, f"n{n}", tuple(f"127.0.0.1:{port}" for port in both)) for n, both in enumerate(seen, 1)
        )
        self.nodes: list[Transport] = []
        for n in (1, 2):
            listen = (f"127.0.0.1:{ports[n - 1]}", f"127.0.0.1:{ports[n + 1]}")
            options = TransportConfig(kind, KEY, listen)
            self.nodes.append(open_transport(ClusterConfig("test", n, peers), options, 1))

    def state(self, node: int, link: int) -> str:
        state: str = self.nodes[node].status()["links"][link]["state"]
        return state


@pytest.fixture(params=["zmq", "udp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.param)
    with contextlib.ExitStack() as stack:
        for relay in pair.relays:
            stack.enter_context(contextlib.closing(relay))
        stack.enter_context(closing(*pair.nodes))
        until(lambda: all(pair.state(n, link) == "up" for n in (0, 1) for link in (0, 1)), *pair.nodes)
        yield pair


def test_no_frame_is_lost_for_good_or_late(pair: Pair) -> None:
    """A frame every 20 ms; link 0 goes silent in both directions. Each arrives, in a small multiple of the time
    after which an answer is missed – which is that large only because the machine may be busy.
    """
    a, b = pair.nodes
    sent: dict[bytes, float] = {}
    late: dict[bytes, float] = {}
    began, cut = time.monotonic(), False
    while time.monotonic() < began + 2 or len(late) < len(sent):
        now = time.monotonic()
        assert now < began + 10, f"{len(sent) - len(late)} frames were lost"
        if now >= began + 0.02 * len(sent) and now < began + 2:
            frame = b"VS-%d" % len(sent)
            sent[frame] = now
            a.send((2,), frame)
        if not cut and now > began + 1:
            cut = True
            for relay in pair.relays:
                relay.cut()
        for frame in turn(a, b)[1]:
            late.setdefault(frame, time.monotonic() - sent[frame])
    timing = LinkTiming()
    assert max(late.values()) * 1e6 < 5 * (timing.busy + timing.answer)
    assert a.counters["frames_repeated"] > 0
    assert a.take_gone() == b.take_gone() == []
    assert pair.state(0, 1) == "up"
    until(lambda: (a.send((2,), b"VS-x"), pair.state(0, 0) == "down")[1], a, b)
    for relay in pair.relays:
        relay.heal()
    until(lambda: (a.send((2,), b"VS-x"), pair.state(0, 0) == "up")[1], a, b)


def test_a_link_that_breaks_with_a_word_is_left_at_once(pair: Pair) -> None:
    a, b = pair.nodes
    for relay in pair.relays:
        relay.close()
    until(lambda: (a.send((2,), b"VS-x"), pair.state(0, 0) == "down")[1], a, b)
    assert b"VS-y" in _next(a, b, b"VS-y")
    assert a.take_gone() == []


def _next(a: Transport, b: Transport, frame: bytes) -> list[bytes]:
    a.send((2,), frame)
    frames: list[bytes] = []
    until(lambda: frames.extend(f for f in b.receive() if f == frame) or frames, a)
    return frames
