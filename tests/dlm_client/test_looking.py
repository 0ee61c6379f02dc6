"""``locks.history``, ``locks.held_at`` and their commands, over a node in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import dlm
import vsync
from dlm.cli import main
from dlm.plugin import service
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub


@pytest.fixture(scope="module")
def node() -> Iterator[vsync.Node]:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as node:
        yield node


@pytest.fixture
def locks(node: vsync.Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[dlm.Client]:
    """A client, and what any URL leads to."""

    def connect(url: str | None = None, **more: Any) -> dlm.Client:
        return dlm.Client(node, **more)

    monkeypatch.setattr(dlm, "connect", connect)
    with dlm.Client(node) as locks:
        yield locks


def test_history(locks: dlm.Client) -> None:
    with locks.lock("a") as held:
        held.convert(dlm.Mode.PR)
    found = locks.history("a")
    assert [event.what for event in found] == ["private", "granted", "converted", "released"]
    private, granted, converted, released = found.events
    assert private.of_name
    assert not private.own
    assert granted.own
    assert granted.fence == held.fence
    assert (converted.mode, converted.before, converted.remark) == (dlm.Mode.PR, dlm.Mode.EX, "from EX")
    assert released.mode is None
    assert found.since <= private.position <= granted.position <= found.position
    assert 0 <= released.ago_s <= granted.ago_s < 60
    assert len(locks.history("a", limit=2)) == 2
    assert not locks.history("nothing")


def test_held_at(locks: dlm.Client) -> None:
    with locks.lock("b") as held:
        position = locks.history("b").position
        past = locks.held_at(b"b", position)
        assert past.state == "private"
        assert past.holders is not None
        assert [one.fence for one in past.holders] == [held.fence]
        assert locks.held_at("b", position - 1).state == "free"
        with pytest.raises(dlm.InvalidRequest, match=r"positions .* to") as caught:
            locks.held_at("b", position + 1000)
        assert caught.value.code == "position"


def test_history_on_the_command_line(locks: dlm.Client, capsys: pytest.CaptureFixture[str]) -> None:
    with locks.lock("c\x1b") as held:
        assert main(["history", "c\x1b"]) == 0
        title, private, granted = capsys.readouterr().out.splitlines()
        assert title.split() == ["POSITION", "AGO", "EVENT", "NODE", "PID", "PROGRAM", "MODE", "FENCE", "REMARK"]
        assert private.split()[2] == "private"
        assert granted.split()[0].endswith("+")
        assert str(held.fence) in granted
        assert main(["history", "c\x1b", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["v"] == 1
        assert said["history"]["events"][1]["mode"] == "EX"
        position = said["history"]["position"]
        assert main(["history", "c\x1b", "--at", str(position)]) == 0
        assert str(held.fence) in capsys.readouterr().out
        assert main(["history", "c\x1b", "--at", str(position), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["held"]["state"] == "private"
        assert main(["history", "c\x1b", "--at", str(position + 1000)]) == 1
        assert "known here: positions" in capsys.readouterr().err
    assert main(["history", "unheard of"]) == 1
    assert "nothing is known" in capsys.readouterr().err


def test_why(locks: dlm.Client, capsys: pytest.CaptureFixture[str]) -> None:
    with locks.lock("d"):
        assert main(["show", "--why", "d"]) == 0
        assert "nobody waits for d" in capsys.readouterr().out
        assert main(["show", "--why", "d", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)["why"]
        assert said["held"][0]["mode"] == "EX"
    assert main(["show", "--why", "never heard of"]) == 1
