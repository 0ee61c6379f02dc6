"""The node's loop and life: outputs in order, failures loud, a real ring in memory and over TCP."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vsync
from tests.vsync.support import ALONE, FakeCore, until
from tests.vsync.transport.ports import free_ports
from vsync.clock import boot_us, first_ring_seq
from vsync.core import Push, Reply
from vsync.embedded import LocalChannel
from vsync.engine.outputs import Note, Persist, Send, Stopped
from vsync.errors import (
    Backpressure,
    ConfigError,
    ForkedProcess,
    MessageTooLarge,
    NotConnected,
    RequestFailed,
    StateDirectoryError,
    TransportError,
    VsyncError,
)
from vsync.loop import Loop
from vsync.storage import MemoryStorage, StateDirectory
from vsync.transport.memory import MemoryHub
from vsync.types import ClusterConfig, Peer, Timing

FAST = Timing(300_000, 70_000, 50_000, 20_000, 120_000, 60_000, 800_000)


class Running:
    """A loop on its thread, with a fake core and a network of two."""

    def __init__(self, storage: Any = None) -> None:
        self.hub = MemoryHub()
        self.peer = self.hub.transport(2)
        self.core = FakeCore()
        self.storage = storage or MemoryStorage()
        self.loop = Loop(self.core, self.hub.transport(1), self.storage)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def put(self, *outputs: Any) -> None:
        self.loop.post(lambda: self.core.out.extend(outputs))

    def join(self) -> None:
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.loop.stop()
    running.join()


# ---------------------------------------------------------------- the loop


def test_frames_reach_the_core_and_sends_the_network(running: Running) -> None:
    running.peer.send((1,), b"to the core")
    until(lambda: running.core.frames == [b"to the core"])
    running.put(Send((2,), b"from the core"))
    assert until(running.peer.receive) == [b"from the core"]


def test_what_follows_a_persist_leaves_after_it_is_stored() -> None:
    seen: list[str] = []

    class Watched(MemoryStorage):
        def write(self, record: bytes) -> None:
            seen.append(f"stored, {len(loop.peer.receive())} frames out")

    loop = Running(Watched())
    loop.put(Persist(b"x"), Send((2,), b"commit token"))
    assert until(loop.peer.receive) == [b"commit token"]
    assert seen == ["stored, 0 frames out"]
    loop.loop.stop()
    loop.join()


def test_a_failed_persist_stops_the_node_before_what_follows(caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemoryStorage):
        def write(self, record: bytes) -> None:
            raise StateDirectoryError("state directory /x record cannot be written: No space left on device")

    running = Running(Full())
    channel = LocalChannel(running.loop)
    reasons: list[str] = []
    channel.on_close(reasons.append)
    running.put(Persist(b"x"), Send((2,), b"commit token"))
    running.join()
    assert running.peer.receive() == []
    assert isinstance(running.loop.failure, StateDirectoryError)
    until(lambda: reasons)
    assert "No space left on device" in reasons[0]
    assert channel.lease_deadline() == (0, 0)
    assert "Traceback" not in caplog.text


def test_a_bug_in_the_core_stops_the_node_loudly(caplog: pytest.LogCaptureFixture) -> None:
    running = Running()
    channel = LocalChannel(running.loop)

    def bug(*_: Any) -> None:
        raise ZeroDivisionError("two views at once")

    running.core.on_request = bug
    with pytest.raises(NotConnected, match="two views at once"):
        channel.call("fake", "x", {}, 20)
    running.join()
    assert isinstance(running.loop.failure, ZeroDivisionError)
    assert "Traceback" in caplog.text
    with pytest.raises(NotConnected, match="two views at once"):
        LocalChannel(running.loop)


@pytest.mark.parametrize(("error", "code"), [(Backpressure, "backpressure"), (MessageTooLarge, "too_large")])
def test_a_full_queue_is_the_callers_matter(running: Running, error: type[VsyncError], code: str) -> None:
    channel = LocalChannel(running.loop)

    def full(*_: Any) -> None:
        raise error("not now")

    running.core.on_request = full
    with pytest.raises(RequestFailed, match="not now") as caught:
        channel.call("fake", "x", {}, 20)
    assert caught.value.code == code
    channel.close()


def test_deadlines_are_kept(running: Running) -> None:
    wanted = boot_us() + 20_000

    def arm() -> None:
        running.core.deadline = wanted

    running.loop.post(arm)
    assert until(lambda: running.core.fired)[0] >= wanted


def test_an_idle_loop_does_not_turn(running: Running) -> None:
    channel = LocalChannel(running.loop)
    turns = channel.call("node", "status", {}, 20)["io"]["turns"]
    fired = boot_us() + 50_000
    running.loop.post(lambda: setattr(running.core, "deadline", fired))
    until(lambda: running.core.fired)
    assert channel.call("node", "status", {}, 20)["io"]["turns"] - turns < 10
    channel.close()


def test_pushes_and_replies_keep_their_order(running: Running) -> None:
    channel = LocalChannel(running.loop)
    seen: list[Any] = []
    channel.on_push("fake", lambda kind, data: seen.append(data))
    running.core.on_request = lambda session, rid, *_: running.core.out.extend(
        [Push(session, "fake", "k", 1), Reply(session, rid, True, 2), Push(session, "fake", "k", 3)]
    )
    future = channel.start("fake", "x", {})
    future.add_done_callback(lambda f: seen.append(f.result()))
    until(lambda: len(seen) == 3)
    assert seen == [1, 2, 3]
    channel.close()


def test_outputs_for_a_session_that_is_gone_are_dropped(running: Running) -> None:
    running.put(Reply(77, 1, True, None), Push(77, "fake", "k", None), Send((2,), b"x"))
    assert until(running.peer.receive) == [b"x"]


def test_an_end_that_the_engine_decides(running: Running) -> None:
    running.put(Stopped("evicted"), Send((2,), b"x"))
    running.join()
    assert (running.loop.stopped, running.loop.failure) == ("evicted", None)


def test_what_an_operator_decided_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vsync.node")
    running = Running()
    running.put(Note("view_installed", {}), Note("quorum_overridden", {}), Stopped("done"))
    running.join()
    levels = {record.message.split()[2]: record.levelname for record in caplog.records}
    assert (levels["view_installed"], levels["quorum_overridden"]) == ("INFO", "WARNING")


# ---------------------------------------------------------------- a node


def cluster(addresses: list[str] | None = None) -> ClusterConfig:
    addresses = addresses or [f"127.0.0.1:{n}" for n in (1, 2, 3)]
    peers = tuple(Peer(n, name, (a,)) for (n, name), a in zip(enumerate("abc", 1), addresses, strict=True))
    return ClusterConfig("test", 1, peers, FAST)


def wait_for_members(node: vsync.Node | vsync.Client, count: int) -> vsync.ClusterView:
    return next(v for v in node.views() if len(v.members) == count and not v.transitional)


def test_three_nodes_in_memory_share_one_ordered_group(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hub, config = MemoryHub(), cluster()
    nodes = [vsync.Node(n, config, transport=hub.transport(i), services=[]) for i, n in enumerate("abc", 1)]
    for node in nodes:
        node.start()
    try:
        view = wait_for_members(nodes[0], 3)
        assert view.primary
        assert [m.name for m in view.members] == ["a", "b", "c"]
        groups = [node.join("prices") for node in nodes]
        streams: list[list[vsync.View | vsync.Message]] = []
        for group in groups:
            first = next(group)
            assert isinstance(first, vsync.View)
            assert any(p.reason == "join" for p in first.joined)
            while len(first.members) < 3:
                first = next(group)
                assert isinstance(first, vsync.View)
            assert first.primary
        for n in range(20):
            for group in groups:
                group.send(b"%d" % n)
        for group in groups:
            streams.append([next(group) for _ in range(60)])
        assert streams[0] == streams[1] == streams[2]
        assert {e.data for e in streams[0] if isinstance(e, vsync.Message)} == {b"%d" % n for n in range(20)}
        with pytest.raises(MessageTooLarge):
            groups[0].send(b"x" * (1 << 20))
        groups[0].send(b"last", wait=True, timeout=20)
        nodes[2].stop()
        assert wait_for_members(nodes[0], 2).left[0].name == "c"
        events = iter(groups[1])
        left = next(e for e in events if isinstance(e, vsync.View))
        assert [(p.node, p.reason) for p in left.left] == [(3, "nodedown")]
        with pytest.raises(NotConnected):
            list(groups[2])
        with groups[0] as leaving:
            pass
        *_, last = leaving
        assert isinstance(last, vsync.View)
        assert [p.reason for p in last.left] == ["leave"]
        assert list(leaving) == []
    finally:
        for node in nodes:
            node.stop()
    assert all(node.failure is None for node in nodes)
    assert "view_installed" in caplog.text


def test_a_ring_over_tcp_survives_a_crash_and_a_return(tmp_path: Path) -> None:
    config = cluster([f"127.0.0.1:{port}" for port in free_ports(3)])

    def node(name: str) -> vsync.Node:
        socket = tmp_path / f"{name}.sock"
        return vsync.Node(name, config, state_dir=tmp_path / name, services=[], socket=socket).start()

    nodes = {name: node(name) for name in "abc"}
    client = vsync.connect(str(tmp_path / "a.sock"))
    try:
        first = wait_for_members(client, 3)
        nodes["b"].stop(graceful=False)
        second = wait_for_members(client, 2)
        assert second.primary
        nodes["b"] = node("b")
        third = wait_for_members(client, 3)
        lives = [next(m.incarnation for m in v.members if m.name == "b") for v in (first, third)]
        assert lives[1] > lives[0]
        assert client.status()["io"]["persists"] >= 3
        nodes["b"].stop()
        nodes["c"].stop()
        alone = wait_for_members(client, 1)
        assert not alone.primary
    finally:
        client.close()
        for n in nodes.values():
            n.stop()
    assert all(n.failure is None for n in nodes.values())


def test_views_begin_with_the_present_one_for_every_caller() -> None:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[]) as node:
        first = wait_for_members(node, 1)
        assert first.primary
        assert next(node.views()) == first
        views = node.views()
        assert next(views) == first
        assert node.status()["view"]["id"] == first.id
        node.stop()
        with pytest.raises(NotConnected):
            next(views)


def test_without_a_record_rings_are_numbered_from_the_clock() -> None:
    """C5: a disk that was replaced must not let the node use a ring id again. From seconds since 2024 on."""
    since_2024 = int(time.time()) - 1_704_067_200
    before = first_ring_seq()
    assert since_2024 <= before
    config = ClusterConfig("mem", 1, cluster().peers[:1], FAST)
    with vsync.Node(config=config, transport=MemoryHub().transport(1), services=()) as node:
        view = wait_for_members(node, 1)
        assert view.primary  # a cluster of one: all are there
        seq = node.status()["view"]["seq"]
        assert before < seq <= int(time.time()) - 1_704_067_200 + 1


def test_joining_twice_with_one_session() -> None:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[]) as node:
        wait_for_members(node, 1)
        client = vsync.Client(node.channel())
        client.join("g")
        with pytest.raises(RequestFailed, match="member of 'g' already"):
            client.join("g")
        assert list(client.groups()) == ["g"]
        client.close()


def test_a_node_is_used_once() -> None:
    node = vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[])
    with pytest.raises(NotConnected, match="has not been started"):
        node.channel()
    node.stop()
    node.start()
    with pytest.raises(VsyncError, match="started once"):
        node.start()
    node.stop()
    node.stop()
    assert node.wait(0)
    with pytest.raises(NotConnected):
        node.status()


def test_a_start_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for socket in (blocked / "d.sock", tmp_path / ("x" * 200)):
        hub, state = MemoryHub(), tmp_path / "s"
        node = vsync.Node(
            config=ALONE, transport=hub.transport(1), services=[], state_dir=state, socket=socket
        )
        with pytest.raises(TransportError):
            node.start()
        StateDirectory(tmp_path / "s", "test", 1).close()


def test_an_unreadable_record_is_refused(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path, "test", 1)
    state.write(b"from another version")
    state.close()
    node = vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[], state_dir=tmp_path)
    with pytest.raises(StateDirectoryError, match="the record cannot be used"):
        node.start()


def test_a_node_needs_a_configuration_that_knows_it() -> None:
    with pytest.raises(ConfigError, match="needs a configuration"):
        vsync.Node("a")
    with pytest.raises(ConfigError, match="'x' is not among solo"):
        vsync.Node("x", ALONE)
    with pytest.raises(ConfigError, match="node 5 is not among"):
        vsync.Node(config=ClusterConfig("test", 5, ALONE.peers))


def test_a_node_in_a_forked_child() -> None:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[]) as node:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                node.channel()
            except ForkedProcess as e:
                os.write(write, str(e).encode())
            node.stop()
            os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        assert b"start another one in the child" in os.read(read, 4096)
        os.close(read)
        assert wait_for_members(node, 1)
