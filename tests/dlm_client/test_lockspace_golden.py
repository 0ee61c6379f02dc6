"""The golden scenarios through ``dlm.Lockspace``: callbacks, event for event, dispatched by the caller."""

from __future__ import annotations

import itertools
import re
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest

import dlm
import vsync
from dlm import Flag, Lksb, Lockspace, Mode, Outcome, Status
from dlm.plugin import service
from tests.dlm.golden import GOLDEN, STEP, steps
from tests.dlm_client.apart import Apart
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub

WAIT_S = 20
WORDS = {
    Status.EUNLOCK: "gone",
    Status.ECANCEL: "canceled",
    Status.EAGAIN: "again",
    Status.EDEADLK: "deadlock",
}
_serial = itertools.count()


@pytest.fixture(scope="module")
def node() -> Iterator[vsync.Node]:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as running:
        yield running


class Stage:
    """Locks named by letters in one lockspace; ``seen`` is what the callbacks have said since the last step."""

    def __init__(self, space: Lockspace, name: bytes) -> None:
        self.space = space
        self.name = name
        self.lkids: dict[str, int] = {}
        self.seen: list[str] = []

    def _ast(self, arg: tuple[str, list[Lksb]]) -> None:
        who, blocks = arg
        lksb = next(block for block in blocks if block.done)
        blocks.remove(lksb)
        said = "".join(f"+{flag.name}" for flag in (Outcome.DEMOTED, Outcome.ALTMODE) if flag & lksb.flags)
        if lksb.status is Status.OK:
            assert lksb.mode is not None
            self.seen.append(f"{who}:ok@{lksb.mode.name}{said}")
        else:
            self.seen.append(f"{who}:{WORDS[lksb.status]}{said}")

    def _bast(self, arg: tuple[str, list[Lksb]], mode: Mode) -> None:
        self.seen.append(f"{arg[0]}:bast({mode.name})")

    def step(self, text: str, expected: int) -> list[str]:
        match = STEP.fullmatch(text)
        assert match, text
        who, what, space = match["who"], match["what"], self.space
        flags = Flag(0)
        for word in re.findall(r"[A-Z]{3,}", match["rest"]):
            flags |= Flag[word]
        mode = Mode[match["mode"]] if match["mode"] else Mode.NL
        self.seen = []
        blocks: list[Lksb] = []
        call: dict[str, Any] = {"astarg": (who, blocks)}
        try:
            if what == "+":
                blocks.append(space.lock(mode, self.name, flags, ast=self._ast, bast=self._bast, **call))
                self.lkids[who] = blocks[0].lkid
            elif what == ">":
                blocks.append(space.convert(self.lkids[who], mode, flags, **call))
            elif what == "-":
                blocks.append(space.unlock(self.lkids[who], **call))
            else:
                space.cancel(self.lkids[who])
        except dlm.LockBusy:
            self.seen.append(f"{who}:busy")
        deadline = time.monotonic() + WAIT_S
        while len(self.seen) < expected and time.monotonic() < deadline:
            if select.select([space], [], [], 1)[0]:
                space.dispatch()
        space.query(self.name)  # what was pushed before this answer is here as well
        space.dispatch()
        return self.seen


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(node: vsync.Node, name: str) -> None:
    with Apart(node, poll=True) as space:
        stage = Stage(space, b"golden%d" % next(_serial))
        # The first lock claims the name for the node: after that the node decides at once.
        space.unlock_wait(space.lock_wait(Mode.NL, stage.name).lkid)
        for number, (step, effects) in enumerate(steps(GOLDEN[name])):
            expected = [effect for effect in effects if not effect.startswith("~")]
            assert stage.step(step, len(expected)) == expected, f"step {number + 1}: {step}"
