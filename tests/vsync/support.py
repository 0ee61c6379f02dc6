"""What the tests of the I/O layer share: a core that does what it is told, and waiting without luck."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vsync.core import CoreOutput, Push, Reply
from vsync.engine.outputs import Note, Stopped
from vsync.service import Credentials
from vsync.types import ClusterConfig, Member, Peer, View

ALONE = ClusterConfig("test", 1, (Peer(1, "solo", ("127.0.0.1:1",)),))


def until(condition: Callable[[], Any], what: str = "condition", seconds: float = 20) -> Any:
    """Poll ``condition`` until it holds; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come true within {seconds} s"
        time.sleep(0.002)
    return value


class FakeLeases:
    """A service with leases that a test sets."""

    name = "fake"
    tag = 9

    def __init__(self) -> None:
        self.leases: dict[int, tuple[int, int]] = {}

    def lease(self, session: int) -> tuple[int, int]:
        return self.leases.get(session, (0, 0))


class FakeCore:
    """``vsync.core.Core`` as far as the loop knows it. ``on_request`` decides what a request does."""

    def __init__(self, config: ClusterConfig = ALONE, services: Sequence[Any] = ()) -> None:
        self.config = config
        self.me = Member(config.node, 7)
        self.view: View | None = None
        self.services = list(services)
        self.opened: dict[int, Credentials] = {}
        self.closed: list[int] = []
        self.requests: list[tuple[int, int, str, str, Mapping[str, Any]]] = []
        self.frames: list[bytes] = []
        self.fired: list[int] = []
        self.gone: list[tuple[int, str]] = []
        self.deadline: int | None = None
        self.on_request: Callable[[int, int, str, str, Mapping[str, Any]], None] = self.echo
        self.out: list[CoreOutput] = []

    def start(self, now: int) -> None:
        self.out.append(Note("fake_started", {"event": "x"}))

    def receive(self, frame: bytes, now: int) -> None:
        self.frames.append(frame)

    def fire(self, now: int) -> None:
        self.fired.append(now)
        self.deadline = None

    def next_deadline(self) -> int | None:
        return self.deadline

    def open_session(self, session: int, who: Credentials, now: int) -> None:
        self.opened[session] = who

    def close_session(self, session: int, now: int) -> None:
        self.closed.append(session)

    def request(
        self, session: int, rid: int, service: str, verb: str, args: Mapping[str, Any], now: int
    ) -> None:
        self.requests.append((session, rid, service, verb, args))
        self.on_request(session, rid, service, verb, args)

    def echo(self, session: int, rid: int, service: str, verb: str, args: Mapping[str, Any]) -> None:
        """``echo`` answers, ``refuse`` refuses, ``push`` pushes; anything else is not answered."""
        if verb == "echo":
            self.out.append(Reply(session, rid, True, dict(args)))
        elif verb == "refuse":
            self.out.append(Reply(session, rid, False, {"code": "no", "message": "refused"}))
        elif verb == "push":
            self.out += [Push(session, service, args["kind"], args["data"]), Reply(session, rid, True, None)]

    def peer_gone(self, node: int, evidence: str, now: int) -> None:
        self.gone.append((node, evidence))

    def leave(self, now: int) -> None:
        self.out.append(Stopped("left"))

    def take_outputs(self) -> list[CoreOutput]:
        out, self.out = self.out, []
        return out

    def status(self) -> dict[str, Any]:
        return {"cluster": self.config.cluster}
