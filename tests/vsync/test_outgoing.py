"""Messages on their way to the node: in order, together, one request at a time."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import msgpack
import pytest

from vsync import outgoing
from vsync.errors import Backpressure, MessageTooLarge, NotConnected, NotMember, RequestFailed
from vsync.outgoing import Outgoing
from vsync.types import MAX_MESSAGE


class Wire:
    """Requests as they leave, answered by hand."""

    def __init__(self) -> None:
        self.requests: list[tuple[list[bytes], str, Future[Any]]] = []
        self.over = False
        self.out = Outgoing(self.transmit)

    def transmit(self, batch: bytes, order: str) -> Future[Any]:
        if self.over:
            raise NotConnected("the daemon has gone")
        future: Future[Any] = Future()
        self.requests.append((msgpack.unpackb(batch), order, future))
        return future

    def send(self, *texts: bytes, order: str = "agreed") -> None:
        for text in texts:
            self.out.add(text, order, None)

    def accept(self) -> None:
        self.requests[-1][2].set_result({})

    @property
    def batches(self) -> list[list[bytes]]:
        return [batch for batch, _, _ in self.requests]


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_a_lone_message_leaves_at_once(wire: Wire) -> None:
    wire.send(b"one")
    assert wire.batches == [[b"one"]]


def test_what_comes_meanwhile_goes_together(wire: Wire) -> None:
    wire.send(b"one", b"two", b"three")
    assert wire.batches == [[b"one"]]
    wire.accept()
    assert wire.batches == [[b"one"], [b"two", b"three"]]
    wire.accept()
    wire.send(b"four")
    assert wire.batches[-1] == [b"four"]


def test_orders_do_not_mix_and_none_overtakes(wire: Wire) -> None:
    wire.send(b"one", b"two")
    wire.send(b"three", b"four", order="safe")
    wire.send(b"five")
    for _ in range(3):
        wire.accept()
    assert [(batch, order) for batch, order, _ in wire.requests] == [
        ([b"one"], "agreed"), ([b"two"], "agreed"), ([b"three", b"four"], "safe"), ([b"five"], "agreed"),
    ]  # fmt: skip


def test_a_batch_is_bounded(wire: Wire) -> None:
    big = bytes(20_000)
    wire.send(b"one", big, big, big, bytes(100_000))
    for _ in range(3):
        wire.accept()
    assert [[len(each) for each in batch] for batch in wire.batches] == [[3], [20_000, 20_000], [20_000], [100_000]]


def test_too_large_is_said_at_once(wire: Wire) -> None:
    with pytest.raises(MessageTooLarge, match=str(MAX_MESSAGE)):
        wire.send(bytes(MAX_MESSAGE))
    assert wire.batches == []


def test_a_full_buffer_waits_for_room(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "ROOM", 10)
    wire.send(b"one", b"0123456789")
    with pytest.raises(Backpressure, match="1 messages wait"):
        wire.out.add(b"more", "agreed", 0.01)
    thread = threading.Thread(target=wire.send, args=(b"more",))
    thread.start()
    wire.accept()
    thread.join(10)
    assert not thread.is_alive()
    wire.accept()
    assert wire.batches == [[b"one"], [b"0123456789"], [b"more"]]


def test_flush_waits_until_all_is_accepted(wire: Wire) -> None:
    wire.out.flush()
    wire.send(b"one", b"two")
    with pytest.raises(TimeoutError):
        wire.out.flush(0.01)
    thread = threading.Thread(target=wire.out.flush)
    thread.start()
    wire.accept()
    wire.accept()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RequestFailed("not_member", "who are you"), NotMember), (NotConnected("gone"), NotConnected),
     (RequestFailed("surprise", "what"), NotConnected)],
)  # fmt: skip
def test_what_became_of_an_earlier_message_is_raised_later(wire: Wire, error: Exception, kind: type) -> None:
    wire.send(b"one", b"two")
    wire.requests[-1][2].set_exception(error)
    with pytest.raises(kind):
        wire.send(b"three")
    with pytest.raises(kind):
        wire.out.flush()
    assert wire.batches == [[b"one"]]


def test_the_daemon_has_gone(wire: Wire) -> None:
    wire.over = True
    wire.send(b"one")
    with pytest.raises(NotConnected, match="gone"):
        wire.send(b"two")


def test_the_end_wakes_who_waits(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "ROOM", 1)
    wire.send(b"one", b"two")
    raised: list[Exception] = []

    def send() -> None:
        try:
            wire.send(b"three")
        except NotMember as error:
            raised.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    wire.out.end(NotMember("left"))
    thread.join(10)
    assert len(raised) == 1
