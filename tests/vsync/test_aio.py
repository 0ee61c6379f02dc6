"""Channels that live in an event loop: what ``test_ipc`` says of the others, and no thread."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import vsync
from tests.in_loop import in_loop, soon
from tests.vsync.served import Served
from tests.vsync.support import ALONE
from vsync.aio import LoopChannel, connect, connect_local
from vsync.errors import ForkedProcess, NotConnected, RequestFailed
from vsync.framing import Decoder, encode
from vsync.transport.memory import MemoryHub

WAYS = ["socket", "embedded"]


async def open_channel(way: str, served: Served) -> LoopChannel:
    if way == "socket":
        return await connect(str(served.path), "prog")
    return await connect_local(served.loop, "prog")


async def answer(channel: LoopChannel, verb: str, args: dict[str, Any]) -> Any:
    return await asyncio.wrap_future(channel.start("fake", verb, args))


@pytest.mark.parametrize("way", WAYS)
@in_loop
async def test_calls_posts_and_pushes_without_a_thread(way: str, served: Served) -> None:
    threads = set(threading.enumerate())
    channel = await open_channel(way, served)
    who = served.core.opened[channel.welcome["session"]]
    assert (who.pid, who.name) == (os.getpid(), "prog")
    seen: list[tuple[str, Any, int]] = []
    channel.on_push("fake", lambda kind, data: seen.append((kind, data, threading.get_ident())))
    futures = [channel.start("fake", "echo", {"n": n}) for n in range(500)]
    assert [(await asyncio.wrap_future(f))["n"] for f in futures] == list(range(500))
    channel.post("fake", "silence", {"x": 1})
    for n in range(10):
        await answer(channel, "push", {"kind": "k", "data": n})
    assert seen == [("k", n, threading.get_ident()) for n in range(10)]
    assert (0, "fake", "silence", {"x": 1}) in [request[1:] for request in served.core.requests]
    with pytest.raises(RequestFailed, match="refused"):
        await answer(channel, "refuse", {})
    assert set(threading.enumerate()) == threads
    channel.close()


@pytest.mark.parametrize("way", WAYS)
@in_loop
async def test_it_cannot_block_the_loop(way: str, served: Served) -> None:
    channel = await open_channel(way, served)
    with pytest.raises(RuntimeError, match="must not wait"):
        channel.call("fake", "echo", {})
    channel.close()


@pytest.mark.parametrize("way", WAYS)
@in_loop
async def test_the_end_of_the_node_is_told_before_calls_fail(way: str, served: Served) -> None:
    channel = await open_channel(way, served)
    order: list[str] = []
    served.core.on_request = lambda *_: None
    future = channel.start("fake", "wait", {})
    future.add_done_callback(lambda _: order.append("call failed"))
    channel.on_close(order.append)
    served.loop.leave()
    await soon(lambda: len(order) == 2, "the end")
    assert order[1] == "call failed"
    assert channel.lease_deadline() == (0, 0)
    with pytest.raises(NotConnected):
        channel.post("fake", "echo", {})
    channel.close()


@pytest.mark.parametrize("way", WAYS)
@in_loop
async def test_close_ends_the_session_after_the_handlers(way: str, served: Served) -> None:
    channel = await open_channel(way, served)
    number = channel.welcome["session"]
    seen: list[bool] = []
    channel.on_close(lambda reason: seen.append(number in served.core.closed))
    channel.close()
    channel.close()
    assert seen == [False]
    await soon(lambda: number in served.core.closed, "the session's end")


@pytest.mark.parametrize("way", WAYS)
@in_loop
async def test_the_lease_is_that_of_the_session(way: str, served: Served) -> None:
    channel = await open_channel(way, served)
    number = channel.welcome["session"]
    served.leases.leases[number] = 3, 99
    await answer(channel, "echo", {})
    await soon(lambda: channel.lease_deadline() == (3, 99), "the lease")
    channel.close()


@pytest.mark.parametrize("way", WAYS)
@in_loop
async def test_a_handler_that_fails_ends_the_session_and_is_told(way: str, served: Served) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    channel = await open_channel(way, served)
    reasons: list[str] = []
    channel.on_close(reasons.append)

    def fails(kind: str, data: Any) -> None:
        raise ZeroDivisionError("the handler's own")

    channel.on_push("fake", fails)
    channel.start("fake", "push", {"kind": "k", "data": 1})
    await soon(lambda: reasons, "the end of the session")
    assert "the handler's own" in reasons[0]
    assert isinstance(told[0]["exception"], ZeroDivisionError)


@pytest.mark.parametrize("way", WAYS)
@in_loop
async def test_a_child_may_not_use_it_and_the_parent_goes_on(way: str, served: Served) -> None:
    channel = await open_channel(way, served)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        told = b"?"
        try:
            channel.post("fake", "echo", {})
        except ForkedProcess:
            told = b"f"
        finally:
            os.write(writer, told)
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"f"
    assert os.waitpid(child, 0)[1] == 0
    assert await answer(channel, "echo", {"x": 1}) == {"x": 1}
    channel.close()


# -- the socket


@pytest.mark.parametrize(
    ("make", "words"),
    [(False, "is not there; start vsyncd"), (True, "does not answer; is the process stopped")],
    ids=["no daemon", "a daemon that does not answer"],
)
def test_no_daemon(make: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsync.ipc.CONNECT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        if make:
            listener.bind(str(tmp_path / "s.sock"))
            listener.listen()
        with pytest.raises(NotConnected, match=words):
            asyncio.run(_connect(tmp_path / "s.sock"))


async def _connect(path: Path) -> None:
    (await connect(str(path))).close()


@in_loop
async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """The kernel says EAGAIN, of which ``loop.sock_connect`` would make a connection."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen(0)
        first.connect(str(tmp_path / "s.sock"))
        task = asyncio.create_task(connect(str(tmp_path / "s.sock")))
        await asyncio.sleep(0.05)
        assert not task.done()
        listener.accept()[0].close()
        peer = await asyncio.to_thread(_greet, listener)
        channel = await task
        assert channel.welcome == {"session": 1}
        channel.close()
        peer.close()


def _greet(listener: socket.socket) -> socket.socket:
    """Accept a client and welcome it."""
    peer, _ = listener.accept()
    decoder = Decoder()
    while decoder.next() is None:
        decoder.feed(peer.recv(4096))
    peer.sendall(encode(["welcome", 1, {"session": 1}]))
    return peer


@in_loop
async def test_what_the_socket_does_not_take_is_sent_later_and_in_order(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        task = asyncio.create_task(connect(str(tmp_path / "s.sock")))
        peer = await asyncio.to_thread(_greet, listener)
        channel = await task
        for n in range(200):
            channel.post("fake", "big", {"n": n, "data": bytes(20_000)})
        assert not await channel.flushed(0.01)

        def read() -> list[int]:
            decoder, found = Decoder(), []
            while len(found) < 200:
                decoder.feed(peer.recv(1 << 16))
                while (frame := decoder.next()) is not None:
                    found.append(frame[3]["n"])
            return found

        reading = asyncio.create_task(asyncio.to_thread(read))
        assert await channel.flushed(20)
        assert await reading == list(range(200))
        assert await channel.flushed(0)
        peer.close()
        ended: list[str] = []
        channel.on_close(ended.append)
        await soon(lambda: ended, "the end of the session")
        assert "closed the connection" in ended[0] or "broke" in ended[0]


@in_loop
async def test_nonsense_from_the_daemon_ends_the_session(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        task = asyncio.create_task(connect(str(tmp_path / "s.sock")))
        peer = await asyncio.to_thread(_greet, listener)
        channel = await task
        future = channel.start("fake", "wait", {})
        peer.sendall(encode(["what", "is", "this"]))
        with pytest.raises(NotConnected, match="neither reply nor push"):
            await asyncio.wrap_future(future)
        peer.close()


# -- a node in this process


def test_a_node_outlives_the_loop_of_its_client() -> None:
    """A client that ends without a word must not take the node's thread with it."""
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[]) as node:
        kept: list[LoopChannel] = []

        async def leave_it() -> None:
            kept.append(await node.async_channel())
            kept[0].post("node", "watch", {})

        asyncio.run(leave_it())
        for _ in range(3):
            assert node.status()["cluster"] == "test"
        assert node.failure is None


@in_loop
async def test_a_node_that_does_not_run() -> None:
    node = vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[])
    with pytest.raises(NotConnected, match="has not been started"):
        await node.async_channel()
    with node:
        (await node.async_channel()).close()
    with pytest.raises(NotConnected):
        await node.async_channel()
