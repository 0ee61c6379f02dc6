"""The bell under elections and barriers: what rings, what does not, and who leaves when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import pytest

import dlm
from dlm.recipes.deadline import Deadline
from dlm.recipes.doorbell import Doorbells, group_of
from dlm.session import Session
from vsync.errors import NotConnected, RequestFailed

InThread = Callable[[Callable[[], Any]], Any]
NOW = Deadline(0)
LONG = Deadline(1000)


class Groups:
    """A channel that knows groups only. ``answers`` are given to requests in turn; ``None``: when told."""

    local = False

    def __init__(self) -> None:
        self.welcome: Mapping[str, Any] = {"session": 7, "node": {"id": 1}}
        self.sent: list[str] = []
        self.answers: list[Exception | None] = []
        self.pending: list[Future[Any]] = []
        self.arrived = threading.Condition()
        self._handlers: dict[str, Callable[[str, Any], None]] = {}
        self.end: Callable[[str], None] = lambda reason: None

    def start(self, service: str, verb: str, args: Mapping[str, Any]) -> Future[Any]:
        assert service == "group"
        future: Future[Any] = Future()
        answer = self.answers.pop(0) if self.answers else {}
        if isinstance(answer, Exception):
            future.set_exception(answer)
        elif answer is None:
            self.pending.append(future)
        else:
            future.set_result(answer)
        with self.arrived:
            self.sent.append(verb)
            self.arrived.notify_all()
        return future

    def wait_sent(self, *verbs: str) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.sent == list(verbs), 20), self.sent

    def on_push(self, service: str, handler: Callable[[str, Any], None]) -> None:
        self._handlers[service] = handler

    def on_close(self, handler: Callable[[str], None]) -> None:
        self.end = handler

    def push(self, kind: str, group: str = "g", **data: Any) -> None:
        self._handlers["group"](kind, {"group": group, **data})

    def view(self, joined: str = "", left: str = "", primary: bool = True) -> None:
        """A view with somebody who joined or left for that reason; we are member (1, 7)."""
        one = {"node": 2, "session": 9, "name": "x", "pid": 1}
        me = {"node": 1, "session": 7, "name": "me", "pid": 2}
        self.push(
            "view",
            view={"id": "1.1", "primary": primary},
            members=[me, one] if joined else [me],
            joined=[{**one, "reason": joined}] if joined else [],
            left=[{**one, "reason": left}] if left else [],
        )


@pytest.fixture
def groups() -> Groups:
    return Groups()


@pytest.fixture
def bells(groups: Groups) -> Doorbells:
    return Doorbells(Session(groups, "default", lambda: 0))  # type: ignore[arg-type]


def test_what_rings_and_what_does_not(groups: Groups, bells: Doorbells) -> None:
    bell = bells.open("g", LONG)
    for view in ({"joined": "join"}, {"left": "leave"}):
        groups.view(**view)
        assert not bell.wait(0, NOW), f"{view} is no news"
    assert bell.losses == 0
    news: list[dict[str, Any]] = [
        {"left": "procdown"},
        {"left": "nodedown"},
        {"joined": "nodeup"},
        {"primary": False},
    ]
    for count, view in enumerate(news):
        groups.view(**view)
        assert bell.wait(count, NOW), f"{view} is news"
    assert bell.losses == 2
    assert not bell.primary
    groups.push("message", data=b"")
    groups.push("message", group="another", data=b"")
    assert bell.rings == 5
    groups.view(joined="join")
    assert bell.members == {(1, 7), (2, 9)}


def test_users_share_and_the_last_one_leaves(groups: Groups, bells: Doorbells) -> None:
    with bells.open("g", LONG) as one:
        with bells.open("g", LONG) as two:
            assert one is two
        assert groups.sent == ["join"]
    assert groups.sent == ["join", "leave"]
    with bells.open("g", LONG) as later:
        assert later is not one
    assert groups.sent == ["join", "leave"] * 2


def test_a_join_waits_for_the_leave_before(groups: Groups, bells: Doorbells, in_thread: InThread) -> None:
    groups.answers = [{}, None]  # type: ignore[list-item]
    bells.open("g", LONG).close()
    again = in_thread(lambda: bells.open("g", LONG))
    assert groups.sent == ["join", "leave"]
    groups.pending.pop().set_result({})
    again.outcome()
    assert groups.sent == ["join", "leave", "join"]


def test_a_leave_waits_for_a_join_that_was_interrupted(
    groups: Groups, bells: Doorbells, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    groups.answers = [None]
    with monkeypatch.context() as patch:
        patch.setattr(Doorbells, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bells.open("g", LONG)
    assert groups.sent == ["join"]
    groups.pending.pop().set_result({})
    assert groups.sent == ["join", "leave"]


def test_a_join_that_takes_too_long(groups: Groups, bells: Doorbells) -> None:
    groups.answers = [None]
    with pytest.raises(dlm.LockTimeout, match=r"within 0\.01 s"):
        bells.open("g", Deadline(0.01))
    groups.pending.pop().set_result({})
    assert groups.sent == ["join", "leave"]


def test_a_refused_join_is_told(groups: Groups, bells: Doorbells) -> None:
    groups.answers = [RequestFailed("too_many", "the processes of this node are in too many groups")]
    with pytest.raises(dlm.DLMError, match="too many groups"):
        bells.open("g", LONG)
    bells.open("g", LONG).close()


def test_a_full_queue_is_waited_for(groups: Groups, bells: Doorbells) -> None:
    bell = bells.open("g", LONG)
    groups.answers = [RequestFailed("backpressure", "full"), RequestFailed("backpressure", "full")]
    bell.ring()
    assert groups.sent == ["join", "send", "send", "send"]
    groups.answers = [RequestFailed("not_member", "what?")]
    with pytest.raises(dlm.DLMError, match="cannot be rung"):
        bell.ring()
    groups.answers = [RequestFailed("backpressure", "full")]
    bell.ring(wait=False)


def test_the_end_of_the_session_ends_all_waits(groups: Groups, bells: Doorbells, in_thread: InThread) -> None:
    bell = bells.open("g", LONG)
    waits = in_thread(lambda: bell.wait(0, Deadline(None)))
    groups.answers = [NotConnected("gone")] * 2
    groups.end("gone")
    with pytest.raises(dlm.NotConnected):
        waits.outcome()
    with pytest.raises(dlm.NotConnected):
        bell.ring()
    bell.close()


def test_names_are_short_and_differ() -> None:
    keys = (b"x", b"\xff" * 64, b"\xfe" * 64)
    spaces, kinds = ("default", "x" * 64), ("barrier", "election")
    names = {group_of(space, kind, key) for space in spaces for kind in kinds for key in keys}
    assert len(names) == 12
    assert all(len(name.encode()) <= 128 for name in names)
    assert group_of("default", "barrier", b"x") == "dlm:default:barrier:x"
