"""``vsync bootstrap`` as a node takes it: who may say it, when it means something, what is logged."""

from __future__ import annotations

from typing import Any

from vsync.core import Core, Push, Reply
from vsync.engine import Note, Persist
from vsync.service import Credentials
from vsync.types import ClusterConfig, Peer

PEERS = tuple(Peer(n, f"n{n}", (f"127.0.0.1:{7000 + n}",), votes) for n, votes in ((1, 2), (2, 1), (3, 1)))
OWNER = 500


class Node:
    """One that nobody hears."""

    def __init__(self, node: int = 1, stored: bytes | None = None) -> None:
        self.core = Core(ClusterConfig("alone", node, PEERS), 1, [], stored, owner=OWNER)
        self.now = 0
        self.stored = b""
        self.notes: list[Note] = []
        self.replies: dict[int, Reply] = {}
        self.core.start(self.now)
        for uid in (0, OWNER, 1000):
            self.core.open_session(uid, Credentials(4711, uid, 0, "vsync"), self.now)
        self.alone()

    def alone(self) -> None:
        """Time passes until it has rung."""
        before = self.core.view
        for _ in range(200):
            self._outputs()
            deadline = self.core.next_deadline()
            if self.core.view is not before or deadline is None:
                break
            self.now = max(self.now, deadline)
            self.core.fire(self.now)

    def _outputs(self) -> None:
        for output in self.core.take_outputs():
            if isinstance(output, Persist):
                self.stored = output.record
            elif isinstance(output, Note):
                self.notes.append(output)
            elif isinstance(output, Reply):
                self.replies[output.rid] = output
            assert not isinstance(output, Push)

    def say(self, uid: int = 0, **args: Any) -> Any:
        """Bootstrap, as this user."""
        rid = len(self.replies) + 1
        self.core.request(uid, rid, "node", "bootstrap", args, self.now)
        self._outputs()
        return self.replies[rid].data

    @property
    def primary(self) -> bool:
        return self.core.view is not None and self.core.view.primary

    def noted(self, name: str) -> list[dict[str, Any]]:
        return [note.fields for note in self.notes if note.name == name]


def test_a_majority_that_nobody_knows() -> None:
    """Node 1 has two of four votes, and node 3 one: not enough."""
    node = Node()
    assert not node.primary
    answer = node.say()
    assert answer["code"] == "invalid"
    assert answer["message"] == "that would not make this view primary: only 2 of 4 votes"
    assert node.noted("bootstrap") == []


def test_who_may_say_so() -> None:
    node = Node()
    assert node.say(1000, override=True)["code"] == "denied"
    assert not node.noted("quorum_override")
    assert node.say(OWNER, override=True) == {"needed": True}
    assert node.noted("quorum_override") == [{"uid": OWNER, "pid": 4711, "program": "vsync"}]
    assert node.primary


def test_not_needed_when_primary() -> None:
    node = Node()
    node.say(override=True)
    first = node.core.view
    assert node.say() == node.say(override=True) == {"needed": False}
    assert node.core.view is first
    assert len(node.noted("quorum_override")) == 1


def test_not_for_who_has_been_in_a_primary_view() -> None:
    """Others may go on without it: that they do not takes stronger words."""
    node = Node()
    node.say(override=True)
    again = Node(stored=node.stored)
    assert not again.primary
    answer = again.say()
    assert answer["code"] == "invalid"
    assert answer["message"].startswith("this node has been in a primary view, so others may go on without it")
    assert again.say(override=True) == {"needed": True}
    assert again.primary


def test_the_status_says_what_is_missing() -> None:
    quorum = Node(3).core.status()["quorum"]
    assert quorum == {
        "policy": "majority",
        "wait_for_all": False,
        "auto_tie_breaker": False,
        "why": "no node here has been in this cluster yet: 2 more must come, or run vsync bootstrap",
        "mark": None,
        "lineage": None,
    }
    node = Node()
    node.say(override=True)
    quorum = node.core.status()["quorum"]
    assert quorum["why"] == "an operator has overridden the quorum"
    assert quorum["mark"] == str(node.core.view.id)  # type: ignore[union-attr]
    assert int(quorum["lineage"], 16) > 0
