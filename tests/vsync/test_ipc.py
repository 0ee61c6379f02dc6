"""Sessions: what a channel promises, over a socket and in process, and what a bad client can do: nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.vsync.served import Served
from tests.vsync.support import FakeCore, until
from vsync import ipc_server
from vsync.core import Push, Reply
from vsync.embedded import LocalChannel
from vsync.errors import ForkedProcess, NotConnected, ProtocolError, RequestFailed, TransportError
from vsync.framing import MAX_IPC_FRAME, Decoder, encode
from vsync.ipc import Channel, SocketChannel, connect, socket_path
from vsync.loop import Loop
from vsync.storage import MemoryStorage
from vsync.transport.memory import MemoryHub


@pytest.fixture(params=["socket", "embedded"])
def channel(request: pytest.FixtureRequest, served: Served) -> Iterator[Channel]:
    over_socket = request.param == "socket"
    channel = connect(str(served.path), "prog") if over_socket else LocalChannel(served.loop, "prog")
    yield channel
    channel.close()


def read_frames(s: socket.socket) -> list[Any]:
    """Every frame until the end of file."""
    decoder, frames = Decoder(), []
    while data := s.recv(65536):
        decoder.feed(data)
        while (frame := decoder.next()) is not None:
            frames.append(frame)
    return frames


# ---------------------------------------------------------------- what a channel promises


def test_the_welcome(channel: Channel, served: Served) -> None:
    welcome = channel.welcome
    assert welcome["node"] == {"id": 1, "name": "solo", "incarnation": 7}
    assert (welcome["cluster"], welcome["lease_us"]) == ("test", 2_000_000)
    assert welcome["services"] == ["fake", "node"]
    who = served.core.opened[welcome["session"]]
    assert (who.pid, who.uid, who.name) == (os.getpid(), os.getuid(), "prog")


def test_calls_are_answered(channel: Channel) -> None:
    assert channel.call("fake", "echo", {"x": b"1"}, 20) == {"x": b"1"}
    futures = [channel.start("fake", "echo", {"n": n}) for n in range(500)]
    assert [f.result(20)["n"] for f in futures] == list(range(500))


def test_a_refusal_has_a_code(channel: Channel) -> None:
    with pytest.raises(RequestFailed, match="refused") as caught:
        channel.call("fake", "refuse", {}, 20)
    assert caught.value.code == "no"


def test_a_call_can_time_out_and_the_channel_goes_on(channel: Channel) -> None:
    with pytest.raises(TimeoutError):
        channel.call("fake", "silence", {}, 0.01)
    assert channel.call("fake", "echo", {"x": 1}, 20) == {"x": 1}


def test_a_post_arrives_without_an_answer(channel: Channel, served: Served) -> None:
    channel.post("fake", "silence", {"x": 1})
    channel.call("fake", "echo", {}, 20)
    assert served.core.requests[0][1:] == (0, "fake", "silence", {"x": 1})


def test_pushes_come_in_order_and_off_the_callers_thread(channel: Channel) -> None:
    seen: list[tuple[str, Any, int]] = []
    channel.on_push("fake", lambda kind, data: seen.append((kind, data, threading.get_ident())))
    for n in range(10):
        channel.call("fake", "push", {"kind": "k", "data": n}, 20)
    until(lambda: len(seen) == 10)
    assert [(k, d) for k, d, _ in seen] == [("k", n) for n in range(10)]
    assert {ident for *_, ident in seen}.isdisjoint({threading.get_ident()})


def test_the_end_of_the_node_is_told_before_calls_fail(channel: Channel, served: Served) -> None:
    order: list[str] = []
    served.core.on_request = lambda *_: None
    future = channel.start("fake", "wait", {})
    future.add_done_callback(lambda _: order.append("call failed"))
    channel.on_close(lambda reason: order.append(reason))
    served.stop()
    with pytest.raises(NotConnected, match="left"):
        future.result(20)
    until(lambda: len(order) == 2)
    assert "left" in order[0]
    assert order[1] == "call failed"
    assert channel.lease_deadline() == (0, 0)
    with pytest.raises(NotConnected):
        channel.call("fake", "echo", {}, 20)
    with pytest.raises(NotConnected):
        channel.post("fake", "echo", {})
    late: list[str] = []
    channel.on_close(late.append)
    assert len(late) == 1


def test_closing_marks_before_the_node_sees_it(channel: Channel, served: Served) -> None:
    session = channel.welcome["session"]
    closed_then: list[bool] = []
    channel.on_close(lambda _: closed_then.append(session in served.core.closed))
    channel.close()
    channel.close()
    until(lambda: session in served.core.closed)
    assert closed_then == [False]
    assert served.core.closed == [session]


def test_a_failing_close_handler_does_not_keep_the_others_uninformed(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    told: list[str] = []
    channel.on_close(lambda _: 1 / 0)  # type: ignore[arg-type]
    channel.on_close(told.append)
    channel.close()
    assert len(told) == 1
    assert reported[0].exc_type is ZeroDivisionError


def test_a_failing_push_handler_ends_the_session_visibly(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    reasons: list[str] = []
    channel.on_close(reasons.append)
    nothing: dict[str, None] = {}
    channel.on_push("fake", lambda kind, data: nothing["missing"])
    channel.start("fake", "push", {"kind": "k", "data": 1})
    until(lambda: reasons)
    assert "handler of this program failed" in reasons[0]
    assert reported[0].exc_type is KeyError


def test_a_cancelled_future_does_not_disturb(channel: Channel, served: Served) -> None:
    future: Future[Any] = channel.start("fake", "silence", {})
    assert future.cancel()
    session, rid, *_ = until(lambda: served.core.requests)[0]
    served.loop.post(lambda: served.core.out.append(Reply(session, rid, True, 1)))
    assert channel.call("fake", "echo", {"x": 1}, 20) == {"x": 1}


def test_leases_are_published_before_the_answer(channel: Channel, served: Served) -> None:
    session = channel.welcome["session"]
    assert channel.lease_deadline() == (0, 0)
    for generation in (1, 2, 3):
        served.leases.leases[session] = (generation, generation * 1_000_000)
        channel.call("fake", "echo", {}, 20)
        assert channel.lease_deadline() == (generation, generation * 1_000_000)


def test_small_steps_of_a_lease_are_not_written_but_steps_back_are(channel: Channel, served: Served) -> None:
    session = channel.welcome["session"]

    def after(deadline: int) -> int:
        served.leases.leases[session] = (1, deadline)
        channel.call("fake", "echo", {}, 20)
        return channel.lease_deadline()[1]

    assert after(1_000_000) == 1_000_000
    assert after(1_049_999) == 1_000_000
    assert after(1_050_000) == 1_050_000
    assert after(1_040_000) == 1_040_000


def test_use_in_a_forked_child_is_refused_and_the_parent_goes_on(channel: Channel, served: Served) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            channel.call("fake", "echo", {})
        except ForkedProcess as e:
            os.write(write, str(e).encode())
        os.write(write, str(channel.lease_deadline()).encode())
        channel.close()
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    said = os.read(read, 4096).decode()
    os.close(read)
    assert f"connect again in process {child}" in said
    assert said.endswith("(0, 0)")
    assert channel.call("fake", "echo", {"x": 1}, 20) == {"x": 1}
    assert served.core.closed == []


# ---------------------------------------------------------------- a killed client, a bad client


def test_the_end_of_file_ends_the_session_at_once(served: Served) -> None:
    with served.raw() as s:
        s.sendall(encode(["vsync", 1, {"name": "x", "pid": 1}]))
        s.recv(65536)
        assert served.core.closed == []
    until(lambda: served.core.closed == [1])
    assert not list((served.path.parent / "d.sock.pages").iterdir())


HELLO = encode(["vsync", 1, {"name": "x", "pid": 1}])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "bytes is announced"),
        (encode(["vsync", 2, {"name": "x", "pid": 1}]), "version 2 is not spoken"),
        (encode(["etcd", 1, {}]), "first frame must be"),
        (encode([1, "fake", "echo", {}]), "first frame must be"),
        (struct.pack(">I", 3) + b"\xc1\xc1\xc1", "no msgpack"),
        (struct.pack(">I", 5) + b"\x91" * 5, "no msgpack"),
        (HELLO + encode({"a": 1}), "must be an array"),
        (HELLO + encode([-1, "fake", "echo", {}]), "a request must be"),
        (HELLO + encode([True, "fake", "echo", {}]), "a request must be"),
        (HELLO + encode([1, "fake", "echo"]), "a request must be"),
        (HELLO + encode([1, "fake", b"echo", {}]), "a request must be"),
        (HELLO + encode([1, "fake", "echo", {1: 2}]), "keys of a request"),
        (HELLO + HELLO, "a request must be"),
        (HELLO + struct.pack(">I", MAX_IPC_FRAME + 1), "bytes is announced"),
        (HELLO + struct.pack(">I", 3) + b"\x93\x01\xd9", "no msgpack"),
        (HELLO + struct.pack(">I", 5000) + b"\x91" * 5000, "no msgpack"),
    ],
)
def test_nonsense_ends_only_its_own_connection(served: Served, data: bytes, says: str) -> None:
    with contextlib.closing(connect(str(served.path))) as good, served.raw() as bad:
        bad.sendall(data)
        frames = read_frames(bad)
        assert frames[-1][:2] == ["error", "protocol"]
        assert says in frames[-1][2]
        assert good.call("fake", "echo", {"x": 1}, 20) == {"x": 1}
    assert served.loop.failure is None


def test_random_bytes_do_no_harm(served: Served) -> None:
    from random import Random

    rng = Random(5)
    good = connect(str(served.path))
    for _ in range(200):
        with served.raw() as bad:
            try:
                bad.sendall(HELLO * rng.randrange(2) + rng.randbytes(rng.randrange(1, 200)))
            except BrokenPipeError:
                pass
    assert good.call("fake", "echo", {"x": 1}, 20) == {"x": 1}
    good.close()
    until(lambda: len(served.core.closed) == len(served.core.opened))


def test_a_client_that_does_not_read_is_disconnected(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc_server, "MAX_UNSENT", 100_000)
    good = connect(str(served.path))
    with served.raw() as bad:
        bad.sendall(HELLO)
        session = until(lambda: [n for n in served.core.opened if n != good.welcome["session"]])[0]
        flood = [Push(session, "fake", "k", b"x" * 10_000)] * 10
        while session not in served.core.closed:
            served.loop.post(lambda: served.core.out.extend(flood))
            assert good.call("fake", "echo", {"x": 1}, 20) == {"x": 1}
    good.close()


def test_a_slow_reader_gets_everything_in_order(served: Served) -> None:
    with served.raw() as slow:
        slow.sendall(HELLO)
        until(lambda: served.core.opened)
        pushes = [Push(1, "fake", "k", [n, b"x" * 5000]) for n in range(400)]
        served.loop.post(lambda: served.core.out.extend(pushes))
        decoder = Decoder()
        got: list[Any] = []
        while len(got) < 401:
            decoder.feed(slow.recv(30_000))
            while (frame := decoder.next()) is not None:
                got.append(frame)
    assert [f[3][0] for f in got[1:]] == list(range(400))


def test_one_busy_client_does_not_starve_another(served: Served) -> None:
    good = connect(str(served.path))
    with served.raw() as busy:
        busy.sendall(HELLO)
        busy.setblocking(False)
        try:
            while True:
                busy.send(encode([0, "fake", "silence", {}]) * 1000)
        except BlockingIOError:
            pass
        assert good.call("fake", "echo", {"x": 1}, 20) == {"x": 1}
    good.close()


def test_an_answer_that_cannot_be_sent_is_an_error_for_that_call_alone(served: Served) -> None:
    served.core.on_request = lambda session, rid, *_: served.core.out.append(
        Reply(session, rid, True, b"x" * (MAX_IPC_FRAME + 1) if rid == 1 else object() if rid == 2 else "fine")
    )
    good = connect(str(served.path))
    for _ in range(2):
        with pytest.raises(RequestFailed, match="answer cannot be sent"):
            good.call("fake", "x", {}, 20)
    assert good.call("fake", "x", {}, 20) == "fine"
    good.close()


def test_a_forked_child_does_not_keep_the_parents_clients_connected(served: Served) -> None:
    read, write = os.pipe()
    with served.raw() as client:
        client.sendall(HELLO)
        client.recv(65536)
        child = os.fork()
        if child == 0:
            os.close(write)
            client.close()
            os.read(read, 1)  # until the parent closes its end
            os._exit(0)
        try:
            served.stop()
            assert read_frames(client)[-1][0] == "error"  # and then the end of file
        finally:
            os.close(write)
            os.close(read)
            os.waitpid(child, 0)


# ---------------------------------------------------------------- connecting


def test_nobody_listens(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/none.sock"
    with pytest.raises(NotConnected, match=f"{url} is not there; start vsyncd, or set VSYNC_URL"):
        connect(url)


def test_a_dead_daemons_socket(tmp_path: Path) -> None:
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(tmp_path / "dead.sock"))
    s.close()
    with pytest.raises(NotConnected, match="is not there; start vsyncd"):
        connect(str(tmp_path / "dead.sock"))


def test_a_stopped_daemon_does_not_hang_its_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsync.ipc.CONNECT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "s.sock"))
        s.listen()
        with pytest.raises(NotConnected, match="does not answer; is the process stopped"):
            connect(str(tmp_path / "s.sock"))


def test_a_full_backlog_is_a_daemon_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsync.ipc.CONNECT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as s, socket.socket(socket.AF_UNIX) as first:
        s.bind(str(tmp_path / "s.sock"))
        s.listen(0)
        first.connect(str(tmp_path / "s.sock"))
        with pytest.raises(NotConnected, match="does not answer"):
            connect(str(tmp_path / "s.sock"))


def test_the_url_comes_from_the_environment(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSYNC_URL", f"unix://{served.path}")
    channel = connect()
    assert channel.url == f"unix://{served.path}"
    channel.close()


@pytest.mark.parametrize("url", ["tcp://1.2.3.4:5", "unix://relative"])
def test_a_url_of_another_kind(url: str) -> None:
    with pytest.raises(NotConnected, match="is not an address of vsyncd"):
        socket_path(url)


def test_a_server_that_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "s.sock"))
        s.listen()

        def answer() -> None:
            peer, _ = s.accept()
            with peer:
                peer.recv(100)
                peer.sendall(encode(["hello"]))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NotConnected, match="the answer is no welcome"):
            connect(str(tmp_path / "s.sock"))
        thread.join()


def test_two_daemons_do_not_share_a_socket(served: Served) -> None:
    loop = Loop(FakeCore(), MemoryHub().transport(1), MemoryStorage())  # type: ignore[arg-type]
    with pytest.raises(TransportError, match="in use by another daemon"):
        loop.listen(served.path, served.path.parent)
    loop.discard()
    channel = connect(str(served.path))
    channel.close()


def test_a_socket_left_by_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(tmp_path / "d.sock"))
    s.close()
    (tmp_path / "d.sock.pages").mkdir()
    (tmp_path / "d.sock.pages" / "1").write_bytes(b"old")
    served = Served(tmp_path)
    channel = connect(str(served.path))
    channel.close()
    served.stop()
    assert not served.path.exists()


# ---------------------------------------------------------------- framing


def test_frames_survive_any_cut() -> None:
    frames = [["vsync", 1, {}], [1, "a", "b", {"x": b"y" * 300}], [0]]
    data = b"".join(map(encode, frames))
    for size in (1, 2, 3, 5, 7, 100, 1000):
        decoder, got = Decoder(), []
        for at in range(0, len(data), size):
            decoder.feed(data[at : at + size])
            while decoder.has_frame():
                got.append(decoder.next())
        assert got == frames


def test_a_frame_that_is_too_long_is_not_made() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        encode([b"x" * MAX_IPC_FRAME])


def test_trailing_bytes_in_a_frame_are_refused() -> None:
    body = msgpack.packb([1]) + b"\x00"
    decoder = Decoder()
    decoder.feed(struct.pack(">I", len(body)) + body)
    with pytest.raises(ProtocolError, match="no msgpack"):
        decoder.next()


def test_socket_channels_name_their_url(served: Served) -> None:
    channel = SocketChannel(str(served.path))
    served.stop()
    with pytest.raises(NotConnected, match=str(served.path)):
        channel.call("fake", "echo", {}, 20)
