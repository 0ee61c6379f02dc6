"""The ``vsync`` command: what it prints, and its exit codes 0, 1, 2, 3, 4."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import vsync
from vsync.cli import render, run
from vsync.cli.table import plain
from vsync.events import ClusterView, NodeLife
from vsync.transport.memory import MemoryHub
from vsync.types import ClusterConfig, Peer, Timing

TIMING = Timing(300_000, 70_000, 50_000, 20_000, 120_000, 60_000, 800_000)
CONFIG = ClusterConfig(
    "prod",
    1,
    (Peer(1, "alpha", ("127.0.0.1:7001",), votes=2), Peer(2, "beta", ("127.0.0.1:7002",))),
    TIMING,
)


def start(folder: Path, config: ClusterConfig) -> vsync.Node:
    node = vsync.Node(config=config, transport=MemoryHub().transport(1), services=[], socket=folder / "s")
    node.start()
    next(v for v in node.views() if not v.transitional)
    return node


def bootstrap(node: vsync.Node) -> None:
    """The other nodes have never been there."""
    with vsync.Client(node.channel(), owned=True) as client:
        assert client.bootstrap()
    next(v for v in node.views() if v.primary)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    node = start(tmp_path, CONFIG)
    bootstrap(node)
    yield f"unix://{tmp_path}/s"
    node.stop()


@pytest.fixture
def minority(tmp_path: Path) -> Iterator[str]:
    peers = (replace(CONFIG.peers[0], votes=1), CONFIG.peers[1])
    node = start(tmp_path, replace(CONFIG, peers=peers))
    yield f"unix://{tmp_path}/s"
    node.stop()


def test_status(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--url", url]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "Cluster prod, seen from node alpha (1)"
    assert "PRIMARY  2 of 3 votes" in lines[1]
    assert lines[2].startswith("Reason  asked by a layer above")
    assert "Quorum" not in out  # by votes, and that stands in the line above
    assert "operational" in lines[3]
    assert out.isascii()
    table = [line.split() for line in lines if "127.0.0.1" in line]
    assert table == [
        ["1", "alpha", "127.0.0.1:7001", "2", "member", "local", "representative"],
        ["2", "beta", "127.0.0.1:7002", "1", "absent", "-"],
    ]
    assert any(line.startswith("io: ") and "persists=" in line for line in lines)


def test_status_as_json_has_everything(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--json", "-u", url]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["v"] == 1
    assert answer["cluster"] == "prod"
    assert answer["view"]["primary"] is True
    assert [n["state"] for n in answer["nodes"]] == ["member", "absent"]
    assert {"node", "ring", "services", "votes", "expected_votes", "io"} <= set(answer)


def test_bootstrap_is_not_needed_when_primary(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bootstrap", "--url", url]) == 0
    assert capsys.readouterr().out == "Nothing to do: the view is primary\n"
    assert run(["bootstrap", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"v": 1, "needed": False}


def test_bootstrap_that_would_not_be_enough(minority: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bootstrap", "--url", minority]) == 1
    assert "that would not make this view primary: only 1 of 2 votes" in capsys.readouterr().err
    assert run(["status", "--url", minority]) == 3
    assert "Quorum  no node here has been in this cluster yet" in capsys.readouterr().out


def test_override_asks_first(
    minority: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run(["bootstrap", "--override", "--url", minority]) != 0
    assert "Is every node outside this view off?" in capsys.readouterr().err
    assert run(["status", "--url", minority]) == 3
    assert run(["bootstrap", "--override", "--yes", "--url", minority]) == 0
    capsys.readouterr()
    assert run(["status", "--url", minority]) == 0
    out = capsys.readouterr().out
    assert "PRIMARY  1 of 2 votes" in out
    assert "Quorum  an operator has overridden the quorum" in out  # as long as this view lasts


def test_status_shows_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    view = {"id": "1.5", "primary": True, "reason": "this node started"}
    ring = {"state": "operational", "delivered": 0, "queue": 0, "counters": {}}
    why = "node 2 at 127.0.0.1:7002 comes from another cluster of this name"
    render.status({
        "cluster": "prod", "node": {"name": "alpha", "id": 1}, "view": view, "votes": 2, "expected_votes": 3,
        "since_us": 0, "quorum": {"why": "2 of 3 votes"}, "nodes": [], "services": {},
        "ring": ring | {"refused": [{"node": 2, "why": why}]},
    })  # fmt: skip
    assert f"Refused node 2: {why}" in capsys.readouterr().out.splitlines()


def test_status_shows_what_a_service_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = [{"text": "waiting for the fencing of node 3 since 41 s", "remedy": "dlm fence-ack c"}]
    render.status({
        "cluster": "prod", "node": {"name": "alpha", "id": 1}, "view": None, "nodes": [],
        "services": {"dlm": {"state": "running", "fences": [1], "waiting": waiting}},
        "ring": {"state": "operational", "delivered": 0, "queue": 0, "refused": [], "counters": {}},
    })  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "dlm: state=running  fences[1]",
        "dlm: waiting for the fencing of node 3 since 41 s",
        "     dlm fence-ack c",
    ]


@pytest.mark.parametrize("command", ["status", "members"])
def test_not_primary_is_3(minority: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--url", minority]) == 3
    assert run([command, "--url", minority, "--json"]) == 3
    assert "alpha" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "members", "groups", "watch", "bootstrap"])
def test_no_daemon_is_4(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"unix://{tmp_path}/none"
    assert run([command, "--url", url]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert url in err
    assert "start vsyncd" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("args", [["bogus"], ["status", "--bogus"], ["watch", "-n", "0"], ["status", "extra"]])
def test_usage_is_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage:" in err


def test_the_url_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSYNC_URL", url)
    assert run(["status"]) == 0


def test_members(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["members", "--url", url]) == 0
    assert capsys.readouterr().out.split()[:6] == ["ID", "NAME", "ADDRESS", "VOTES", "STATE", "ROLE"]
    assert run(["members", "--url", url, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["v"], answer["primary"]) == (1, True)
    assert [m["name"] for m in answer["members"]] == ["alpha", "beta"]


def test_groups(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["groups", "--url", url]) == 0
    assert capsys.readouterr().out == "No groups\n"
    with vsync.connect(url, "ticker") as client:
        client.join("prices")
        assert run(["groups", "--url", url]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert rows[0] == ["GROUP", "NODE", "SESSION", "PID", "PROGRAM"]
        assert [rows[1][0], rows[1][1], rows[1][4]] == ["prices", "alpha", "ticker"]
        assert run(["groups", "--url", url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["groups"]["prices"][0]["name"] == "ticker"


def test_watch(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", "--url", url, "-n", "1"]) == 0
    line = capsys.readouterr().out
    assert " primary " in line
    assert " alpha" in line
    assert run(["watch", "--url", url, "-n", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["v"] == 1
    assert [m["name"] for m in answer["members"]] == ["alpha"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"vsync {vsync.__version__}\n" * 2
    assert run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"v": 1, "version": vsync.__version__}


def test_a_line_of_watch_names_who_came_and_went() -> None:
    from vsync.cli.render import view_line

    a, b, c = (NodeLife(n, name, n) for n, name in enumerate("abc", 1))
    view = ClusterView("1.5", (a, b), (b,), (c,), False, False, "token lost")
    assert view_line(view) == "1.5 non-primary  a,b +b -c  (token lost)"


def test_a_table_in_a_log_is_ascii_and_names_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    from vsync.cli.table import show

    show(("ID", "NAME"), [(1, "evil\x1b[2J"), (20, None)])
    assert capsys.readouterr().out == "ID  NAME\n 1  evil\\x1b[2J\n20  -\n"
    assert plain(("A",), []) == "A"
