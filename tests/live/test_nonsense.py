"""Clients that talk nonsense, talk half, or do not listen: their own connection at worst, nobody else's."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

import dlm
from tests.live.helpers import log_lines, status, until
from vsync import client
from vsync.errors import RequestFailed
from vsync.framing import MAX_IPC_FRAME, Decoder, encode
from vsync.ipc import connect
from vsync.ipc_server import MAX_UNSENT
from vsync.testcluster import LocalCluster

pytestmark = pytest.mark.live

HELLO = encode(["vsync", 1, {"name": "nonsense", "pid": 1}])


@contextlib.contextmanager
def raw(cluster: LocalCluster, name: str = "a", hello: bytes = b"") -> Iterator[socket.socket]:
    """A bare connection to a node."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(cluster[name].socket))
        connection.sendall(hello)
        yield connection


def frames_until_the_end(connection: socket.socket) -> list[Any]:
    """What the daemon still says before it closes the connection; the socket's time-out fails the test."""
    decoder = Decoder()
    with contextlib.suppress(ConnectionResetError):  # it closed with bytes of ours unread
        while data := connection.recv(1 << 16):
            decoder.feed(data)
    frames = []
    while (frame := decoder.next()) is not None:
        frames.append(frame)
    return frames


@pytest.fixture
def others(unharmed: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster, with a client at the same node that holds a lock all the time and must not notice."""
    with dlm.connect(unharmed["a"].url) as locks, locks.lock("bystander") as held:
        yield unharmed
        held.check()
        with locks.lock("another", timeout=10):
            pass
        assert not held.lost


NOISE = random.Random(3)
NONSENSE = {
    "nothing": encode([]),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": NOISE.randbytes(5000),
    "huge length": b"\xff\xff\xff\xff",
    "too long": (MAX_IPC_FRAME + 1).to_bytes(4, "big"),
    "empty frame": bytes(4),
    "no msgpack": b"\x00\x00\x00\x04\xc1\xc1\xc1\xc1",
    "more than one object": b"\x00\x00\x00\x02\x90\x90",
    "bad text": b"\x00\x00\x00\x04\x91\xa2\xff\xfe",
    "too deep": b"\x00\x00\x20\x00" + b"\x91" * 0x2000,
    "array that is cut": b"\x00\x00\x00\x05\xdd\xff\xff\xff\xff",
    "not an array": encode({"a": 1}),
    "unhashable key": b"\x00\x00\x00\x04\x91\x81\x90\x01",
    "a number": encode(7),
}


@pytest.mark.parametrize("words", [*NONSENSE.values(), encode(["vsync", 2, {"name": "x"}])], ids=[*NONSENSE, "v2"])
def test_nonsense_instead_of_a_greeting(others: LocalCluster, words: bytes) -> None:
    with raw(others, hello=words) as connection:
        (last,) = frames_until_the_end(connection)
    assert last[:2] == ["error", "protocol"]
    assert len(last[2]) > 10


BAD_REQUESTS = {
    "negative rid": [-1, "node", "status", {}],
    "rid is true": [True, "node", "status", {}],
    "rid is text": ["1", "node", "status", {}],
    "no arguments": [1, "node", "status"],
    "arguments are a list": [1, "node", "status", []],
    "service is a number": [1, 2, "status", {}],
    "verb is nil": [1, "node", None, {}],
    "too much": [1, "node", "status", {}, {}],
    "argument names are numbers": [1, "node", "status", {1: 2}],
    "greeting again": ["vsync", 1, {"name": "x"}],
}


@pytest.mark.parametrize(
    "words", [*NONSENSE.values(), *map(encode, BAD_REQUESTS.values())], ids=[*NONSENSE, *BAD_REQUESTS]
)
def test_nonsense_instead_of_a_request(others: LocalCluster, words: bytes) -> None:
    with raw(others, hello=HELLO + words) as connection:
        welcome, *_, last = frames_until_the_end(connection)
    assert welcome[0] == "welcome"
    assert last[:2] == ["error", "protocol"]


def test_half_a_frame_waits_and_half_a_frame_ends(others: LocalCluster) -> None:
    request = encode([1, "node", "members", {}])
    with raw(others, hello=HELLO) as slow, raw(others, hello=HELLO + request[:7]):
        for byte in request[:-1]:
            slow.sendall(bytes([byte]))
        with client.connect(others["a"].url) as session:
            assert len(session.members()) == 3  # others do not wait for the slow one
        slow.sendall(request[-1:])
        slow.shutdown(socket.SHUT_WR)
        frames = frames_until_the_end(slow)
    assert [frame[0] for frame in frames] == ["welcome", 1]


WRONG = [None, True, -1, 1 << 63, 1.5, "x", b"x", [], {}, [[1]], {"a": {}}]
WRONG += [msgpack.Timestamp(1), msgpack.ExtType(7, b"")]
#: for every verb: arguments that are right, of which one at a time is made wrong
VERBS: dict[tuple[str, str], dict[str, Any]] = {
    ("dlm", "lock"): {
        "h": 1, "name": b"n", "mode": 5, "no_quorum": "wait", "space": "default", "value": b"", "timeout_us": 0,
    },
    ("dlm", "space_create"): {"space": "web", "permissions": 0o600, "value_limit": 9, "no_quorum": "wait"},
    ("dlm", "space_open"): {"space": "default", "no_quorum": "fail"},
    ("dlm", "space_close"): {"space": "default"},
    ("dlm", "space_release"): {"space": "nowhere", "force": 0},
    ("dlm", "convert"): {"h": 1, "mode": 3, "value": b""},
    ("dlm", "unlock"): {"h": 1, "value": b""},
    ("dlm", "cancel"): {"h": 1},
    ("dlm", "ls"): {"space": "default", "prefix": b"", "after": b"", "limit": 5},
    ("dlm", "show"): {"space": "default", "name": b"n"},
    ("group", "join"): {"group": "g"},
    ("group", "send"): {"group": "g", "data": b"d"},
    ("group", "leave"): {"group": "g"},
}
#: wrong by type, but these places take them nevertheless
TAKEN = {
    "h": [1],
    "mode": [],
    "name": ["x", b"x"],
    "no_quorum": [],
    "space": ["x"],
    "value": [None, b"x"],
    "prefix": ["x", b"x"],
    "after": ["x", b"x"],
    "limit": [],
    "timeout_us": [],
    "permissions": [],
    "value_limit": [],
    "force": [],
    "group": ["x"],
    "data": [b"x"],
}


@pytest.mark.parametrize(("service", "verb"), VERBS, ids=[".".join(each) for each in VERBS])
def test_wrong_arguments_are_refused_by_name(others: LocalCluster, service: str, verb: str) -> None:
    right = VERBS[service, verb]
    channel = connect(others["a"].url)
    try:
        for key in right:
            wrong = [value for value in WRONG if not any(value is v or value == v for v in TAKEN[key])]
            if key != "value":
                wrong += [bytes(2000), "x" * 2000]
            else:
                wrong += [bytes(70_000)]
            if key in ("data", "prefix", "after"):
                wrong = [value for value in wrong if not isinstance(value, bytes)]
            if key in ("prefix", "after"):
                wrong = [value for value in wrong if not isinstance(value, str)]
            for value in wrong:
                with pytest.raises(RequestFailed) as refused:
                    channel.call(service, verb, {**right, key: value}, 20)
                assert refused.value.code == "invalid", f"{key} = {value!r}: {refused.value}"
                assert (key if key not in ("group",) else "group name") in refused.value.message
        for key in right.keys() & {"h", "mode", "name", "group", "data"}:
            with pytest.raises(RequestFailed, match=key):
                channel.call(service, verb, {k: v for k, v in right.items() if k != key}, 20)
    finally:
        channel.close()


def test_unknown_services_and_verbs(others: LocalCluster) -> None:
    channel = connect(others["a"].url)
    for service, verb in [("nosuch", "x"), ("node", "nosuch"), ("dlm", "nosuch"), ("group", "nosuch"), ("", "")]:
        with pytest.raises(RequestFailed) as refused:
            channel.call(service, verb, {"group": "g"}, 20)
        assert refused.value.code in ("unknown_service", "unknown_verb")
        assert repr(verb if "verb" in refused.value.code else service) in refused.value.message
    channel.close()


def test_a_message_that_is_too_large(others: LocalCluster) -> None:
    with client.connect(others["a"].url) as session:
        group = session.join("large")
        with pytest.raises(ValueError, match="1048576"):
            group.send(bytes(1 << 20))
        group.send(bytes((1 << 20) - 100), wait=True)


def test_many_connections_opened_and_dropped(others: LocalCluster) -> None:
    before = status(others, "a")["io"]["sessions"]
    with contextlib.ExitStack() as stack:
        for number in range(200):
            hello = (b"", HELLO[: number % len(HELLO)], HELLO)[number % 3]
            stack.enter_context(raw(others, hello=hello))
        until(lambda: status(others, "a")["io"]["sessions"] >= before + 66, "their sessions")
    until(lambda: status(others, "a")["io"]["sessions"] == before, "the end of their sessions")


def test_a_client_that_does_not_read_is_put_out(others: LocalCluster) -> None:
    join = encode([1, "group", "join", {"group": "flood"}])
    with raw(others, hello=HELLO + join), client.connect(others["a"].url) as talker, client.connect(
        others["b"].url
    ) as reader:
        until(lambda: len(talker.groups().get("flood", ())) == 1, "the deaf member")
        group, listening = talker.join("flood"), reader.join("flood")
        for _ in range(MAX_UNSENT // 1_000_000 + 2):
            group.send(bytes(1_000_000), wait=True)
        (line,) = until(lambda: log_lines(others["a"], "client_does_not_read"), "the complaint")
        assert "unsent=" in line
        gone = next(event for event in listening if getattr(event, "left", ()))
        assert [(p.name, p.reason) for p in gone.left] == [("nonsense", "procdown")]
        assert len(gone.members) == 2


def test_a_client_that_does_not_read_its_answers_has_to_wait(others: LocalCluster) -> None:
    """Requests are cheap to send and answers pile up: it is slowed down, and served when it reads."""
    count = 3000
    requests = b"".join(encode([rid, "node", "status", {}]) for rid in range(1, count + 1))
    with raw(others, hello=HELLO) as connection:
        connection.settimeout(60)
        sender = threading.Thread(target=connection.sendall, args=(requests,), daemon=True)
        sender.start()
        with dlm.connect(others["a"].url) as locks, locks.lock("meanwhile", timeout=10):
            until(lambda: status(others, "a")["io"]["requests"] > 300, "some requests that were taken")
        taken = status(others, "a")["io"]["requests"]
        decoder, rids = Decoder(), []
        while len(rids) < count:
            decoder.feed(connection.recv(1 << 16))
            while (frame := decoder.next()) is not None:
                if frame[0] != "welcome":
                    rids.append(frame[0])
        sender.join(20)
    assert rids == list(range(1, count + 1))
    assert status(others, "a")["io"]["requests"] > taken  # the rest was taken while it read


def test_requests_that_take_long_do_not_keep_the_token(others: LocalCluster) -> None:
    """A client that asks for long lists as fast as it can must not cost the node its place in the ring."""
    listing = encode([1, "dlm", "ls", {"prefix": b"long", "limit": 5000}])
    with dlm.connect(others["a"].url) as locks, raw(others, hello=HELLO) as connection:
        held = [locks.acquire(f"long{number}") for number in range(2200)]
        before = status(others, "a")["ring"]["counters"]["orf_token_rx"]
        sender = threading.Thread(target=ignore, args=(connection.sendall, listing * 200), daemon=True)
        sender.start()
        answers = 0
        while answers < 15:  # some 400 kB each
            answers += len(connection.recv(1 << 20)) / 400_000
        assert status(others, "a")["ring"]["counters"]["orf_token_rx"] > before
        connection.shutdown(socket.SHUT_RDWR)
        sender.join(20)
        assert len(locks.ls("long")) == len(held)  # more than one answer can hold
        assert all(each.valid for each in held)
        for each in held:
            each.release()


def ignore(call: Callable[..., object], *args: object) -> None:
    """Call; that the other side hangs up is expected."""
    with contextlib.suppress(OSError):
        call(*args)
