"""The golden scenarios of the value block (locks.md §1.18, G31 to G33) through the client."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest

import dlm
import vsync
from dlm import Mode
from dlm.plugin import service
from tests.dlm.golden import STEP, VALUES
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub

WAIT_S = 20.0


@pytest.fixture
def node() -> Iterator[vsync.Node]:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as running:
        yield running


class Person:
    """One letter of a script: a client and its lock. A conversion that has to wait does so on a thread."""

    def __init__(self, node: vsync.Node) -> None:
        self.client = dlm.Client(node)
        self.held: dlm.Held | None = None
        self.waits: threading.Thread | None = None

    def step(self, what: str, mode: Mode | None, invalidate: bool, value: bytes | None) -> None:
        if what == "+":
            assert mode is not None
            self.held = self.client.acquire("R", mode, timeout=WAIT_S)
        elif what == "*":
            self.client.close()  # its process: for the value block as good as its node (L7)
        else:
            assert self.held is not None
            if what == "-":
                if value is not None:
                    self.held.value = value
                self.held.release(wait=True, invalidate=invalidate)
            else:
                assert mode is not None
                self._convert(self.held, mode, invalidate, value)

    def _convert(self, held: dlm.Held, mode: Mode, invalidate: bool, value: bytes | None) -> None:
        def convert() -> None:
            held.convert(mode, timeout=WAIT_S, value=value, invalidate=invalidate)

        self.waits = threading.Thread(target=convert)
        self.waits.start()

    def settle(self) -> None:
        if self.waits is not None:
            self.waits.join(WAIT_S)
            assert not self.waits.is_alive()
            self.waits = None


@pytest.mark.parametrize("name", VALUES)
def test_golden_values(node: vsync.Node, name: str) -> None:
    people: dict[str, Person] = {}
    for step, who, value, valid in VALUES[name]:
        match = STEP.fullmatch(step)
        assert match
        given = re.search(r'"(.*)"', match["rest"])
        person = people.setdefault(match["who"], Person(node))
        mode = Mode[match["mode"]] if match["mode"] else None
        person.step(match["what"], mode, "IVVALBLK" in match["rest"], given[1].encode() if given else None)
        if not who and match["what"] == ">":
            _until_it_waits(person.client)
        if who:
            people[who].settle()
            held = people[who].held
            assert held is not None
            if value is not None:
                assert held.value == value, step
            if "IVVALBLK" not in step:  # what invalidates is told nothing
                assert held.value_valid is valid, step
    for person in people.values():
        person.client.close()


def _until_it_waits(client: dlm.Client) -> None:
    while not (found := client.show("R")) or not found.converting:
        pass
