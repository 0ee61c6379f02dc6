"""A packet of the old ring that comes while its receiver is committed: its entry has said what it holds."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.vsync.engine.harness import Story
from vsync.engine import Deliver, State
from vsync.engine.outputs import Output
from vsync.testing.mutants import MUTANTS
from vsync.wire import FrameType


class Late(Story):
    """Node 3 dies having sent a packet that reaches node 1 alone, when that is in ``state``."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.orders: dict[int, list[bytes]] = defaultdict(list)
        self.held: list[bytes] = []
        self.state = state
        self.do("start 1 2 3")
        self.do("run 2000")
        self.do("drop TOKEN 3 1")
        self.do("submit 3 late")
        self.do("run 1")
        assert self.held
        self.do("crash 3")
        self.do("gone 1 3")
        self.do("gone 2 3")
        self.do("run 2000")

    def seen(self, node: int, output: Output) -> None:
        if isinstance(output, Deliver):
            self.orders[node] += output.messages

    def _transmit(self, source: int, target: int, frame: bytes) -> None:
        if source == 3 and frame[3] == FrameType.DATA:
            if target == 1:
                self.held.append(frame)
            return
        super()._transmit(source, target, frame)

    def _carry_out(self, node: int) -> None:
        super()._carry_out(node)
        if node == 1 and self.held and 3 not in self.engines and self.engines[1].state is self.state:
            self.engines[1].receive(self.held.pop(), self.now)
            super()._carry_out(1)


@pytest.mark.parametrize("state", [State.GATHER, State.COMMIT, State.RECOVERY])
def test_both_survivors_deliver_the_same(state: State) -> None:
    story = Late(state)
    assert not story.held
    assert story.engines[1].ring.id == story.engines[2].ring.id
    assert story.orders[1] == story.orders[2]
    assert (b"late" in story.orders[1]) == (state is State.GATHER)  # then the entry of node 1 says that it has it


@pytest.mark.parametrize("state", [State.COMMIT, State.RECOVERY])
def test_they_would_not_if_the_window_stayed_open(state: State) -> None:
    mutant = next(each for each in MUTANTS if each.name == "the old ring's window stays open while committed")
    with mutant.alive():
        story = Late(state)
    assert story.orders[1] != story.orders[2]
