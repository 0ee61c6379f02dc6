"""``vsync nodes``: what it prints, what it refuses, its exit codes."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import vsync
from vsync.cli import nodes as command
from vsync.cli import run
from vsync.config import load
from vsync.transport.memory import MemoryHub
from vsync.transport.options import TransportConfig
from vsync.types import ClusterConfig, Peer, Timing

TIMING = Timing(300_000, 70_000, 50_000, 20_000, 120_000, 60_000, 800_000)
ALPHA = Peer(1, "alpha", ("127.0.0.1:7001",), votes=2)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    node = vsync.Node(
        config=ClusterConfig("prod", 1, (ALPHA,), TIMING),
        transport=MemoryHub().transport(1),
        services=[],
        socket=tmp_path / "s",
        state_dir=tmp_path / "state",
    )
    with node:
        next(v for v in node.views() if v.primary)
        yield f"unix://{tmp_path}/s"


def out(capsys: pytest.CaptureFixture[str], url: str, *words: str, code: int = 0) -> str:
    assert run(["nodes", *words, "--url", url]) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def test_the_list(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, url).splitlines() == [
        "Version 1",
        "ID  NAME   ADDRESS         VOTES  STATE   SINCE",
        " 1  alpha  127.0.0.1:7001      2  member      -",
    ]
    assert out(capsys, url, "ls") == out(capsys, url)
    assert json.loads(out(capsys, url, "--json"))["nodes"] == [
        {"id": 1, "name": "alpha", "addresses": ["127.0.0.1:7001"], "votes": 2, "since": 0, "state": "member"}
    ]


def test_changes(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = out(capsys, url, "add", "beta", "127.0.0.1:7002")
    assert table.splitlines()[0] == "Version 2"
    assert table.splitlines()[-1].split() == ["2", "beta", "127.0.0.1:7002", "1", "absent", "2"]
    out(capsys, url, "set", "beta", "--votes", "0", "--address", "127.0.0.1:7012")
    out(capsys, url, "replace", "2", "127.0.0.1:7022", "--name", "gamma", "--votes", "1")
    rows = json.loads(out(capsys, url, "add", "delta", "127.0.0.1:7003", "--id", "9", "--votes", "0", "--json"))
    assert [(row["id"], row["name"], row["votes"], row["since"]) for row in rows["nodes"]] == [
        (1, "alpha", 2, 0), (2, "gamma", 1, 4), (9, "delta", 0, 5),
    ]  # fmt: skip
    assert out(capsys, url, "remove", "gamma", "--yes").splitlines()[0] == "Version 6"


def test_export_is_what_the_file_needs(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out(capsys, url, "add", "beta", "127.0.0.1:7002", "--votes", "0")
    text = out(capsys, url, "export")
    assert text.startswith("# The nodes of the cluster, version 2.\n")
    assert len(tomllib.loads(text)["nodes"]) == 2
    file = tmp_path / "vsyncd.toml"
    file.write_text(f'[cluster]\nname = "prod"\n[node]\nname = "alpha"\n{text}')
    assert load(file).cluster.peers == (ALPHA, Peer(2, "beta", ("127.0.0.1:7002",), 0))


def test_several_addresses_are_exported_as_a_list() -> None:
    row = {"id": 1, "name": "a", "addresses": ["a:1", "b:1"], "votes": 1}
    assert "addresses = [\"a:1\", \"b:1\"]" in command._tables({"version": 1, "nodes": [row]})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add", "beta", "127.0.0.1:7002", "--votes", "9"], "add it with --votes 0"),
        (["add", "beta", "127.0.0.1"], "an address is host:port"),
        (["add", "beta", "127.0.0.1:99999"], "an address is host:port"),
        (["add", "alpha", "127.0.0.1:7002"], "the name alpha is another node's"),
        (["add", "x", "127.0.0.1:7002", "--id", "1"], "node 1 belongs to the cluster already"),
        (["add", "beta", "127.0.0.1:7002", "127.0.0.2:7002"], "every node needs the same number of addresses"),
        (["remove", "beta", "--yes"], "there is no node 'beta': vsync nodes lists them"),
        (["remove", "alpha", "--yes"], "a node cannot see the end of its own removal"),
        (["set", "alpha", "--votes", "0"], "no node would have a vote"),
        (["set", "alpha"], "node 1 is so already"),
        (["replace", "alpha"], "stop its vsyncd first"),
    ],
)
def test_refused(url: str, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    said = out(capsys, url, *words, code=1)
    assert says in said
    assert said.startswith("vsync: ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("words", [["paint"], ["add"], ["add", "b"], ["remove"], ["--paint"], ["set", "a", "-x"]])
def test_usage(words: list[str]) -> None:
    assert run(["nodes", *words]) == 2


def test_who_removes_is_asked(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert "Take alpha out of the cluster?" in out(capsys, url, "remove", "alpha", code=130)


def test_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not there" in out(capsys, "unix:///nowhere", "ls", code=4)


def test_addresses_that_the_transport_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a key nothing but the loopback: the same rule as for the file, said before anything is changed."""
    from vsync.testcluster import free_ports

    peer = Peer(1, "alpha", (f"127.0.0.1:{free_ports(1)[0]}",))
    config, transport = ClusterConfig("prod", 1, (peer,), TIMING), TransportConfig("zmq")
    with vsync.Node(config=config, transport=transport, services=[], socket=tmp_path / "s") as node:
        next(v for v in node.views() if v.primary)
        said = out(capsys, f"unix://{tmp_path}/s", "add", "beta", "10.1.2.3:7002", "--votes", "0", code=1)
    assert "without a key only loopback addresses are accepted" in said


def test_a_change_that_is_not_in_force_in_time(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("vsync.client.Client.change_nodes", never)
    said = out(capsys, url, "set", "alpha", "--votes", "1", code=1)
    assert said == "vsync: the change is not in force yet, and may still come or not: look at vsync nodes\n"


def test_the_stored_nodes_go_before_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once there has been a primary view; ``vsync status`` and ``vsync nodes`` say so."""

    def node(*peers: Peer) -> vsync.Node:
        return vsync.Node(
            config=ClusterConfig("prod", 1, peers, TIMING), transport=MemoryHub().transport(1), services=[],
            socket=tmp_path / "s", state_dir=tmp_path / "state",
        )  # fmt: skip

    url = f"unix://{tmp_path}/s"
    with node(ALPHA) as first:
        next(v for v in first.views() if v.primary)
    with node(ALPHA, Peer(2, "beta", ("127.0.0.1:7002",), votes=9)) as again:
        next(v for v in again.views() if v.primary)
        assert run(["nodes", "--url", url]) == 0
        printed = capsys.readouterr()
        assert "beta" not in printed.out
        assert printed.err == (
            "vsync: this host's file: has node 2 (beta); the cluster's own word goes first: paste what vsync nodes "
            "export prints\n"
        )
        assert run(["status", "--url", url]) == 0
        assert "Nodes   this host's file: has node 2 (beta)" in capsys.readouterr().out
