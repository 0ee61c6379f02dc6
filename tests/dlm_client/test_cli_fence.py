"""``dlm fences`` and ``dlm fence-ack``: what they print, what they ask, and their exit codes."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from dlm.cli import main
from vsync import ipc
from vsync.errors import NotConnected, RequestFailed

ROWS = [
    {
        "node": 3, "name": "c", "incarnation": 5, "since_us": 41_000_000, "spaces": ["web"], "actor": 1,
        "step": "waits", "due_us": 4_000_000, "attempts": 1, "given_up": 2, "exit": 1, "said": "no route\x1b",
    },
    {
        "node": 4, "name": "d", "incarnation": 9, "since_us": 0, "spaces": ["*"], "actor": None,
        "step": None, "due_us": None, "attempts": 0, "given_up": 0, "exit": None, "said": "",
    },
]  # fmt: skip
TABLE = """\
NODE  ID  SINCE  ACTOR  STATE       FAILED         EXIT  SAID
c     3   41 s   1      waits, 4 s  1, 2 gave up  1     no route\\x1b
d     4   0 s    -      no agent    0              -     -
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def daemon(channel: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The channel, as what any URL leads to."""
    channel.script["fences"] = lambda args: ROWS

    def connect(url: str | None, name: str) -> Any:
        channel.url, channel.closed = url, False
        return channel

    call = channel.call  # it knows the lock manager only
    monkeypatch.setattr(channel, "call", lambda service, verb, args: call("dlm", verb, args))
    monkeypatch.setattr(ipc, "connect", connect)
    return channel


def acknowledged(daemon: Any) -> list[dict[str, Any]]:
    return [args for verb, args in daemon.sent if verb == "fence_ack"]


def test_fences_is_a_table(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "unix:///there", "fences"]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()] == [line.split() for line in TABLE.splitlines()]
    assert (daemon.url, daemon.closed) == ("unix:///there", True)


def test_fences_in_json(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fences", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"v": 1, "fences": ROWS}


@pytest.mark.parametrize("node", ["c", "3"])
def test_with_yes_nobody_is_asked(daemon: Any, node: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fence-ack", node, "--yes"]) == 0
    assert acknowledged(daemon) == [{"node": 3}]
    said = capsys.readouterr()
    assert said.out == "node c counts as down\n"
    assert "Node c (id 3) counts as down" in said.err


def test_on_a_terminal_its_name_is_wanted(
    daemon: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    assert main(["fence-ack", "c"]) == 1
    assert "nothing was done" in capsys.readouterr().err
    assert acknowledged(daemon) == []
    monkeypatch.setattr("sys.stdin", Terminal("c\n"))
    assert main(["fence-ack", "c"]) == 0
    assert acknowledged(daemon) == [{"node": 3}]


def test_a_script_must_say_yes(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("c\n"))
    assert main(["fence-ack", "c"]) == 2
    assert acknowledged(daemon) == []


def test_a_node_that_nobody_waits_for(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fence-ack", "b", "--yes"]) == 1
    assert "nothing waits for node 'b' to be fenced" in capsys.readouterr().err
    assert acknowledged(daemon) == []


@pytest.mark.parametrize(("code", "exit_code"), [("permission", 1), ("no_quorum", 3), ("lost", 1)])
def test_refusals(daemon: Any, code: str, exit_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.script["fence_ack"] = lambda args: RequestFailed(code, "not so")
    assert main(["fence-ack", "c", "--yes"]) == exit_code
    assert "dlm: not so" in capsys.readouterr().err
    assert daemon.closed


def test_no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(url: str | None, name: str) -> Any:
        raise NotConnected("nobody there")

    monkeypatch.setattr(ipc, "connect", connect)
    assert main(["fences"]) == 4


@pytest.mark.parametrize(
    ("code", "said", "line", "exit_code"),
    [
        (0, "", "c: on", 0),
        (2, "Status: OFF", "c: off: Status: OFF", 0),
        (1, "no route\x1b", "c: exit 1: no route\\x1b", 1),
        (None, "no end in time", "c: failed: no end in time", 1),
    ],
)
def test_an_agent_is_tried(
    daemon: Any, code: int | None, said: str, line: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.script["members"] = lambda args: [{"id": 1, "name": "a"}, {"id": 3, "name": "c"}]
    daemon.script["fence_check"] = lambda args: {"node": args["node"], "exit": code, "said": said}
    assert main(["fence-check", "c"]) == exit_code
    assert capsys.readouterr().out == f"{line}\n"
    assert daemon.last("fence_check") == {"node": 3}
    assert main(["fence-check", "x"]) == 2
