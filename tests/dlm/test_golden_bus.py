"""The golden scenarios through whole lock managers on the bus: what clients are told, event for event.

Once with all clients at one node, which owns the name and works alone; once spread over the nodes, where every step
is a message and each client sees its own events. A repetition that B5 permits is dropped at delivery (B6).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from dlm.modes import ALTMODE, DEMOTED, NAMES
from tests.dlm.bus import CLIENT, LEASE, Bus, Node
from tests.dlm.golden import GOLDEN, STEP, VALUES, steps

ONE = {"one node": lambda who: 1}
SPREAD: dict[str, Callable[[str], int]] = {**ONE, "three nodes": lambda who: 1 + ord(who) % 3}


class Stage:
    """Clients named by letters, each with its own session; ``seen`` are the events since the last step."""

    def __init__(self, node_of: Callable[[str], int]) -> None:
        self.bus = Bus()
        self.node_of = node_of
        self.handles: dict[str, int] = {}
        self.seen: list[str] = []
        self.read: dict[str, tuple[bytes | None, bool]] = {}  #: what each was told of the value block, in this step
        for node in self.bus.alive():
            self._listen(node)

    def _listen(self, node: Node) -> None:
        reply, refuse, push = node.host.reply, node.host.refuse, node.host.push

        def on_reply(session: int, rid: int, result: Any) -> None:
            self._replied(session, rid, result)
            reply(session, rid, result)

        def on_refuse(session: int, rid: int, code: str, message: str, **more: Any) -> None:
            self.seen.append(f"{chr(session)}:{code}{_said(more.get('flags', 0))}")
            refuse(session, rid, code, message, **more)

        def on_push(session: int, service: str, kind: str, data: Any) -> None:
            if kind == "blocking":
                self.seen.append(f"{chr(session)}:bast({NAMES[data['mode']]})")
            push(session, service, kind, data)

        node.host.reply, node.host.refuse, node.host.push = on_reply, on_refuse, on_push  # type: ignore[method-assign]

    def _replied(self, session: int, rid: int, result: dict[str, Any]) -> None:
        if not result:
            self.seen.append(f"{chr(session)}:gone")
        elif "canceled" not in result:
            self.seen.append(f"{chr(session)}:ok@{NAMES[result['mode']]}{_said(result['flags'])}")
            value = result["value"] if result["value_read"] else None
            self.read[chr(session)] = value, result["value_valid"]

    def step(self, text: str) -> list[str]:
        match = STEP.fullmatch(text)
        assert match, text
        who, what = match["who"], match["what"]
        node, session = self.node_of(who), ord(who)
        if session not in self.bus[node].service.home.sessions:
            self.bus[node].service.open(session, CLIENT, self.bus.now)
        words = match["rest"].partition('"')[0].split()
        args: dict[str, Any] = {word.lower(): True for word in words}
        mode = NAMES.index(match["mode"]) if match["mode"] else 0
        value = re.search(r'"(.*)"', match["rest"])
        if value is not None:
            args["value"] = value[1].encode()
        self.seen, self.read = [], {}
        if what == "*":
            self.end(who)
        elif what == "+":
            _, self.handles[who] = self.bus.lock(node, b"R", mode, session, blocking=True, **args)
        elif what == ">":
            self.bus.call(node, "convert", session, h=self.handles[who], mode=mode, blocking=True, **args)
        else:
            verb = {"-": "unlock", "!": "cancel"}[what]
            self.bus.call(node, verb, session, h=self.handles[who], **args)
        self.bus.run()
        return self.seen

    def end(self, who: str) -> None:
        """Its node dies; where all are at one node, its process (L7 makes no difference)."""
        node = self.node_of(who)
        if len({self.node_of(other) for other in self.handles}) == 1:
            self.bus.close(node, ord(who))
            return
        self.bus.kill(node)
        self.bus.view([other.id for other in self.bus.alive()])
        self.bus.advance(2 * LEASE)


def _said(flags: int) -> str:
    return "+DEMOTED" * bool(flags & DEMOTED) + "+ALTMODE" * bool(flags & ALTMODE)


@pytest.mark.parametrize("where", SPREAD)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str, where: str) -> None:
    stage = Stage(SPREAD[where])
    for number, (step, effects) in enumerate(steps(GOLDEN[name])):
        expected = [effect for effect in effects if not effect.startswith("~")]
        seen = stage.step(step)
        if where in ONE:
            assert seen == expected, f"step {number + 1}: {step}"
        else:
            assert sorted(seen) == sorted(expected), f"step {number + 1}: {step}"
            for who in {effect[0] for effect in seen}:
                mine = [[effect for effect in each if effect[0] == who] for each in (seen, expected)]
                assert mine[0] == mine[1], f"step {number + 1}: {step}, at {who}"
    stage.bus.check_at_rest()
    form = stage.bus[1].table.names.get(b"\0R")
    assert (form is None) or (form.owner == 1) == (where in ONE)


#: ``a`` has a node to itself: it may die.
APART: dict[str, Callable[[str], int]] = {**ONE, "three nodes": lambda who: 1 if who == "a" else 2 + ord(who) % 2}


@pytest.mark.parametrize("where", APART)
@pytest.mark.parametrize("name", VALUES)
def test_golden_values(name: str, where: str) -> None:
    """G31 to G33."""
    stage = Stage(APART[where])
    for number, (step, who, value, valid) in enumerate(VALUES[name]):
        stage.step(step)
        if who:
            assert stage.read.pop(who) == (value, valid), f"step {number + 1}: {step}"
        elif number:
            assert not stage.read, f"step {number + 1}: {step}"
    stage.bus.check_at_rest()
