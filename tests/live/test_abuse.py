"""Whatever comes to a node's port, the ring does not mind: frames that are none, stale, or a stranger's."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.live.cores import Cores
from tests.live.helpers import configuration, counters, log_lines, status, until, view_ids, vsyncd, works
from vsync.testcluster import LocalCluster, free_ports
from vsync.transport import MAX_FRAME
from vsync.types import Member
from vsync.wire import HEADER_SIZE, WIRE_VERSION, FrameType, cluster_tag, encode_header

pytestmark = pytest.mark.live

REFUSED = ("rx_bad_frames", "rx_old_incarnation", "rx_token_dropped", "rx_msg_dropped")


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalCluster]:
    """Without a key: strangers reach the engine, which has to defend itself."""
    with LocalCluster(key=False) as cluster:
        yield cluster


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """One without a key for one test."""
    with LocalCluster(key=False) as cluster:
        yield cluster


@contextlib.contextmanager
def stranger(address: str) -> Iterator[zmq.Socket[bytes]]:
    """A ZeroMQ socket that sends to a node as its peers do."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.linger = 2000
        push.connect(f"tcp://{address}")
        yield push


def send_all(cluster: LocalCluster, name: str, frames: list[bytes], kinds: tuple[str, ...] = REFUSED) -> int:
    """Send frames to a node and wait until it has counted each of them under one of ``kinds``."""
    before = counters(cluster, name)

    def counted() -> int:
        now = counters(cluster, name)
        return sum(now[kind] - before[kind] for kind in kinds)

    with stranger(cluster[name].address) as push:
        for frame in frames:
            push.send(frame)
        until(lambda: counted() >= len(frames), f"{len(frames)} frames counted")
    return counted()


def real_frames(cluster: LocalCluster) -> dict[FrameType, list[bytes]]:
    """Frames as this cluster's own nodes send them – of former lives of theirs."""
    cores = Cores(3, "local", [node.address for node in cluster.nodes])
    for node in (1, 2, 3):
        cores.call(node, "dlm", "lock", h=1, name=b"n", mode=1)
        cores.call(node, "group", "join", group="g")
    cores[3].leave(cores.now)
    kinds: dict[FrameType, list[bytes]] = {kind: [] for kind in FrameType}
    for _, frame in cores.frames:
        kinds[FrameType(frame[3])].append(frame)
    return kinds


# ---------------------------------------------------------------- bytes


def test_noise_is_dropped_and_counted(unharmed: LocalCluster) -> None:
    noise = random.Random(1)
    frames = [noise.randbytes(size) for size in [*range(0, 400, 5), 70_000, MAX_FRAME]]
    assert send_all(unharmed, "a", frames, ("rx_bad_frames",)) == len(frames)
    said = log_lines(unharmed["a"], "bad_frame")
    assert any("not a vsync frame: something else sends to this node's port" in line for line in said)
    assert len(said) < len(frames)  # the same complaint is not made for every frame


def test_damaged_frames_of_our_own_are_dropped(unharmed: LocalCluster) -> None:
    noise = random.Random(2)
    damaged = []
    for kind, frames in real_frames(unharmed).items():
        if not frames:
            continue
        frame = frames[0]
        damaged += [frame[:size] for size in range(HEADER_SIZE)]
        damaged += [bytes([frame[at] ^ 0x55]).join((frame[:at], frame[at + 1 :])) for at in range(12)]
        if kind is not FrameType.DATA:  # whose body is anything, but for a ring that does not exist
            damaged += [frame[:size] for size in range(HEADER_SIZE, len(frame))]
            damaged += [frame[:HEADER_SIZE] + noise.randbytes(size) for size in range(1, 60)]
            damaged += [frame + b"\x00"]
    before = {name: counters(unharmed, name)["rx_bad_frames"] for name in "abc"}
    for name in "abc":
        send_all(unharmed, name, damaged)
        assert counters(unharmed, name)["rx_bad_frames"] - before[name] > len(damaged) // 2


def test_frames_of_former_lives_are_stale(unharmed: LocalCluster) -> None:
    kinds = real_frames(unharmed)
    assert kinds[FrameType.DATA]
    assert kinds[FrameType.JOIN]
    assert kinds[FrameType.TOKEN]
    for name in "abc":
        for kind in (FrameType.DATA, FrameType.JOIN, FrameType.TOKEN):
            send_all(unharmed, name, kinds[kind])


def test_a_frame_that_is_too_large_ends_its_connection_only(unharmed: LocalCluster) -> None:
    before = counters(unharmed, "a")["rx_bad_frames"]
    with stranger(unharmed["a"].address) as push:
        monitor = push.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        push.send(bytes(MAX_FRAME + 1))
        assert monitor.poll(20_000), "the node kept the connection"
        push.disable_monitor()
        monitor.close()
    assert counters(unharmed, "a")["rx_bad_frames"] == before


def test_what_is_not_zeromq_is_hung_up_on(unharmed: LocalCluster) -> None:
    host, port = unharmed["b"].address.split(":")
    for words in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01" + bytes(300), bytes(64), b"\xff" * 4096):
        with socket.create_connection((host, int(port))) as tcp:
            tcp.settimeout(20)
            with contextlib.suppress(OSError):  # it may have hung up by now
                tcp.sendall(words)
                tcp.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while tcp.recv(4096):
                    pass  # until it hangs up; the time-out fails the test


def test_connections_that_say_nothing_do_not_matter(unharmed: LocalCluster) -> None:
    host, port = unharmed["c"].address.split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection((host, int(port))))
        works(unharmed)


# ---------------------------------------------------------------- strangers


def test_frames_of_another_cluster_and_version_are_named(unharmed: LocalCluster) -> None:
    sender = Member(77, 5)
    foreign = encode_header(FrameType.TOKEN, cluster_tag("elsewhere"), sender) + b"\x90"
    newer = bytearray(encode_header(FrameType.JOIN, cluster_tag("local"), sender))
    newer[2] = WIRE_VERSION + 1
    assert send_all(unharmed, "a", [foreign, bytes(newer)], ("rx_bad_frames",)) == 2
    said = "\n".join(log_lines(unharmed["a"], "bad_frame node=77"))
    assert "frame of another cluster from node 77: compare [cluster] name on both sides" in said
    assert f"wire version {WIRE_VERSION + 1} from node 77, this node speaks {WIRE_VERSION}: run releases" in said


def test_a_daemon_of_another_cluster_may_talk_to_ours(unharmed: LocalCluster, tmp_path: Path) -> None:
    """It is configured with our addresses, by mistake: a [cluster] name that was mistyped."""
    (port,) = free_ports(1)
    nodes = [(node.id, node.name, node.address) for node in unharmed.nodes[:2]]
    config = configuration(tmp_path / "x", [*nodes, (3, "c", f"127.0.0.1:{port}")], "c", cluster="locla")
    with vsyncd(config) as (_, log):
        for name in "ab":
            node = unharmed[name]
            until(lambda node=node: log_lines(node, "another cluster from node 3"), "the complaint")
        until(lambda: " alone " in log.read_text(), "the other one's complaint")
    assert "primary=True" not in log.read_text()


def test_an_id_used_twice_is_refused_and_named(unharmed: LocalCluster, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    nodes = [(node.id, node.name, node.address) for node in unharmed.nodes[:2]]
    config = configuration(tmp_path / "x", [*nodes, (3, "c", f"127.0.0.1:{port}")], "c")
    views = view_ids(unharmed)
    with vsyncd(config) as (process, log):
        for name in "ab":
            node = unharmed[name]
            line = until(lambda node=node: log_lines(node, "node id 3 is used twice"), "the complaint")[0]
            assert f"127.0.0.1:{port} claims it" in line
            assert f"configured at {unharmed['c'].address}" in line
            assert "stop the wrong one" in line
        said = until(lambda: [line for line in log.read_text().splitlines() if " alone " in line], "its own")[0]
        assert unharmed["a"].address in said
        assert "refuse this node (see their logs)" in said
        works(unharmed)
        assert process.poll() is None
    assert view_ids(unharmed) == views


def test_a_node_nobody_has_configured_is_refused_and_named(unharmed: LocalCluster, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    nodes = [(node.id, node.name, node.address) for node in unharmed.nodes]
    config = configuration(tmp_path / "x", [*nodes, (9, "z", f"127.0.0.1:{port}")], "z")
    with vsyncd(config):
        for name in "abc":
            node = unharmed[name]
            line = until(lambda node=node: log_lines(node, "bad_frame node=9"), "the complaint")[0]
            assert f"node 9 at 127.0.0.1:{port} is not in this node's configuration: run vsync nodes add" in line


def test_a_second_daemon_at_a_nodes_own_address_does_not_start(unharmed: LocalCluster, tmp_path: Path) -> None:
    nodes = [(node.id, node.name, node.address) for node in unharmed.nodes]
    config = configuration(tmp_path / "x", nodes, "b")
    with vsyncd(config) as (process, log):
        assert process.wait(20) == 1
    said = log.read_text()
    assert unharmed["b"].address in said
    assert "is already in use" in said
    assert "Traceback" not in said
    assert status(unharmed, "b")["view"]["primary"]
